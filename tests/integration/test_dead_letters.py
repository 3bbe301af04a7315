"""Rubbish in the topic: each record that can't be read is set aside whole, and its partition goes on."""

import contextlib
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kafka import KafkaProducer

from brewctl.delivery.broker import PARTITIONS, Record, open_admin
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.lab.play.nodes import Node
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import (
    GZIP,
    Good,
    RawHeaders,
    RawKey,
    committed_offsets,
    good_record,
    kafka_admin,
    raw_client,
    refused_connections,
    replaced,
    send_raw,
)
from tests.integration.reading import read_topic

PARTITION = 3
NOTES = ["dlq-reason", "dlq-group", "dlq-topic", "dlq-partition", "dlq-offset"]


@dataclass
class Bench:
    """A consumer of the group `inventory`, and a hand on the topic that it reads."""

    rig: Rig
    client: Any
    admin: Any
    node: Node | None = None

    def start(self) -> Node:
        self.node = self.node or self.rig.start("inventory-1", "consume", "inventory")
        return self.node

    def send(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: RawHeaders,
        *,
        codec: int = 0,
        partition: int = PARTITION,
    ) -> int:
        return send_raw(self.client, (self.rig.settings.topic, partition), key, value, headers, codec=codec)

    def send_good(self, *, partition: int = PARTITION) -> Good:
        good = good_record()
        self.send(good.key, good.value, good.headers, partition=partition)
        return good

    def committed(self) -> dict[int, int]:
        return committed_offsets(self.admin, "inventory", self.rig.settings.topic)

    def wait_until_passed(self, offset: int) -> None:
        """Wait until the group has committed that it is done with an offset of the partition."""
        node = self.start()

        def passed() -> bool:
            assert node.alive, f"the consumer ended:\n{node._tail()}"
            return self.committed().get(PARTITION, -1) > offset

        self.rig.wait(f"offset {offset} behind the group", passed, timeout_s=30)

    def reservations(self, *goods: Good) -> int:
        """How many of these orders are reserved."""
        ids = [good.order_id for good in goods]
        found = self.rig.connection.execute(
            "SELECT count(*) FROM inventory_reservations WHERE order_id::text = ANY(%s)", (ids,)
        )
        return int(str(found.fetchall()[0][0]))

    def letters(self, offset: int) -> list[Record]:
        """Dead letters of one record of the partition."""
        place = {"dlq-partition": str(PARTITION).encode(), "dlq-offset": str(offset).encode()}
        return [
            letter
            for letter in read_topic(self.rig.settings, dead_letters=True)
            if place.items() <= dict(letter.headers).items()
        ]

    def pass_through(
        self, key: bytes | None, value: bytes | None, headers: RawHeaders, *, codec: int = 0
    ) -> list[Record]:
        """Send a record between two good ones, see the partition go on, and return its dead letters."""
        before = self.send_good()
        offset = self.send(key, value, headers, codec=codec)
        after = self.send_good()
        self.wait_until_passed(offset + 1)
        assert self.reservations(before, after) == 2
        return self.letters(offset)

    def expect_letter(self, key: bytes | None, value: bytes | None, headers: RawHeaders, *, codec: int = 0) -> None:
        """Send a record that can't be read: it is set aside once, whole, with the reason and the place."""
        (letter,) = self.pass_through(key, value, headers, codec=codec)
        assert letter.key == key
        assert letter.value == value
        original, notes = letter.headers[: -len(NOTES)], letter.headers[-len(NOTES) :]
        assert original == list(headers)
        assert [name for name, _ in notes] == NOTES
        told = {name: note.decode() for name, note in notes}
        assert told["dlq-reason"]
        assert told["dlq-group"] == "inventory"
        assert told["dlq-topic"] == self.rig.settings.topic


# The tests of a class share one consumer and its topic; a test outside of one has its own.
@pytest.fixture(scope="class")
def bench(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with (
        open_rig(servers, tmp_path_factory.mktemp("dead_letters")) as rig,
        raw_client(rig.settings) as client,
        kafka_admin(rig.settings) as admin,
    ):
        yield Bench(rig, client, admin)


RUBBISH = {
    "tombstone": None,
    "empty": b"",
    "text": b"this is no OrderCreated",
    "random": random.Random(9).randbytes(300),
    "one-byte": b"\xff",
    "cut-short": good_record().value[:-7],
    "no-order-id": OrderCreated(customer_id="alice", amount_cents=450, currency="EUR").SerializeToString(),
    "order-id-no-uuid": OrderCreated(order_id="order-1", customer_id="alice").SerializeToString(),
    "900-KiB": random.Random(9).randbytes(900 * 1024),
    # A few bytes below the limit of the topic: with its notes it is above.
    "largest-of-the-topic": random.Random(9).randbytes(1_048_588 - 350),
}


class TestOneConsumer:
    """What one consumer meets in the course of a day."""

    @pytest.mark.parametrize("value", RUBBISH.values(), ids=RUBBISH.keys())
    def test_a_value_that_is_no_event_is_set_aside(self, bench: Bench, value: bytes | None) -> None:
        good = good_record()
        bench.expect_letter(good.key, value, good.headers)

    @pytest.mark.parametrize(
        "new",
        [
            {"outbox_id": b""},
            {"outbox_id": b"0"},
            {"outbox_id": b"-1"},
            {"outbox_id": b"seven"},
            {"outbox_id": b"1.0"},
            {"outbox_id": b" 7"},
            {"outbox_id": b"7\n"},
            {"outbox_id": b"\xff\xfe"},
            {"outbox_id": "\N{ARABIC-INDIC DIGIT SEVEN}".encode()},
            {"outbox_id": str(2**63).encode()},
            {"outbox_id": b"9" * 5000},
            {"content_type": b"application/json"},
            {"content_type": b""},
            {"content_type": b"\xff"},
            {"event_type": b"\xff"},
        ],
        ids=lambda new: "-".join(f"{name}={value[:9]!r}" for name, value in new.items()),
    )
    def test_a_header_that_can_not_be_right_is_set_aside(self, bench: Bench, new: dict[str, bytes]) -> None:
        good = good_record()
        bench.expect_letter(good.key, good.value, replaced(good.headers, **new))

    @pytest.mark.parametrize("missing", ["outbox-id", "event-type", "content-type"])
    def test_a_missing_header_is_set_aside(self, bench: Bench, missing: str) -> None:
        good = good_record()
        bench.expect_letter(good.key, good.value, [header for header in good.headers if header[0] != missing])

    def test_a_record_without_headers_is_set_aside(self, bench: Bench) -> None:
        good = good_record()
        bench.expect_letter(good.key, good.value, [])

    def test_a_record_without_a_key_is_set_aside(self, bench: Bench) -> None:
        bench.expect_letter(None, b"rubbish", [("from", "Zoë".encode()), ("from", b"twice")])

    def test_a_record_of_nothing_at_all_is_set_aside(self, bench: Bench) -> None:
        (letter,) = bench.pass_through(None, None, [])
        assert (letter.key, letter.value) == (None, None)
        assert [name for name, _ in letter.headers] == NOTES

    def test_a_null_header_is_set_aside_as_an_empty_one(self, bench: Bench) -> None:
        # The client sends no null header: the letter's is empty.
        good = good_record()
        (letter,) = bench.pass_through(good.key, good.value, replaced(good.headers, outbox_id=None))
        assert (letter.key, letter.value) == (good.key, good.value)
        assert letter.headers[: -len(NOTES)] == replaced(good.headers, outbox_id=b"")
        assert [name for name, _ in letter.headers[-len(NOTES) :]] == NOTES

    @pytest.mark.parametrize("value", [b"\x00not an order at all", b"", None], ids=["other", "empty", "tombstone"])
    def test_another_event_type_is_no_dead_letter(self, bench: Bench, value: bytes | None) -> None:
        good = good_record()
        assert bench.pass_through(good.key, value, replaced(good.headers, event_type=b"order.shipped")) == []

    def test_another_event_type_has_no_effect(self, bench: Bench) -> None:
        good = good_record()
        assert bench.pass_through(good.key, good.value, replaced(good.headers, event_type=b"order.shipped")) == []
        assert bench.reservations(good) == 0

    def test_many_in_a_row_are_each_set_aside_once(self, bench: Bench) -> None:
        before = bench.send_good()
        offsets = [
            bench.send(b"many", random.Random(number).randbytes(200), [("number", b"%d" % number)])
            for number in range(40)
        ]
        after = bench.send_good()
        bench.wait_until_passed(offsets[-1] + 1)
        assert bench.reservations(before, after) == 2
        found = read_topic(bench.rig.settings, dead_letters=True)
        numbers = sorted(int(dict(letter.headers)["number"]) for letter in found if letter.key == b"many")
        assert numbers == list(range(40))

    def test_an_outage_of_the_database_does_not_multiply_them(self, bench: Bench, servers: dict[str, str]) -> None:
        node = bench.start()
        rubbish, good = good_record()._replace(value=b"rubbish"), good_record()
        settings = bench.rig.settings
        with (
            refused_connections(bench.rig, servers, node.name),
            # Both in one batch, so in one poll: the letter is sent, the reservation has to wait.
            contextlib.closing(KafkaProducer(**connection(settings, name="test"), linger_ms=1_000)) as producer,
        ):
            sent = [
                producer.send(settings.topic, one.value, one.key, headers=one.headers, partition=PARTITION)
                for one in (rubbish, good)
            ]
            offset, last = (future.get(timeout=30).offset for future in sent)
            node.wait_for("two tries", lambda node: node.log.read_text().count("postgres_unavailable") >= 2)
        bench.wait_until_passed(last)
        assert bench.reservations(good) == 1
        assert len(bench.letters(offset)) == 1


def test_no_offset_passes_a_dead_letter_that_kafka_has_not_acknowledged(bench: Bench) -> None:
    """Its topic is gone for a while: the record waits where it is, and so does what comes after it."""
    bench.wait_until_passed(bench.send(None, b"rubbish", []))
    node, topic = bench.start(), bench.rig.settings.dead_letter_topic
    with open_admin(bench.rig.settings) as admin:
        admin.delete_topic(topic)
        bench.rig.wait("the end of the dead-letter topic", lambda: topic not in admin.topics())
        offset = bench.send(None, b"rubbish", [])
        node.wait_for("its tries", lambda node: node.log.read_text().count("dead_letter_unacknowledged") > 1)
        good = bench.send_good()
        assert bench.committed()[PARTITION] == offset
        admin.create_topic(topic, replicas=1, dead_letters=True)
    bench.wait_until_passed(offset + 1)
    assert len(bench.letters(offset)) == 1
    assert bench.reservations(good) == 1


def test_an_order_id_that_only_python_takes_for_a_uuid_is_set_aside(bench: Bench) -> None:
    for order_id in (f"urn:uuid:{uuid.uuid4()}", f"{{{uuid.uuid4()}", f"{uuid.uuid4()}-"):
        good = good_record()
        value = OrderCreated(order_id=order_id, customer_id="alice").SerializeToString()
        bench.expect_letter(good.key, value, good.headers)


def test_a_record_that_only_compression_made_fit_is_set_aside(bench: Bench) -> None:
    """The topic's limit is on the batch as it was sent: 3 MiB of zeros are 3 KiB of gzip."""
    good = good_record()
    bench.expect_letter(good.key, bytes(3 * 1024 * 1024), good.headers, codec=GZIP)


def test_a_header_name_that_is_not_utf_8_is_set_aside(bench: Bench) -> None:
    good = good_record()
    (letter,) = bench.pass_through(good.key, b"rubbish", [*good.headers, (RawKey(b"\xff\xfe"), b"value")])
    assert (letter.key, letter.value) == (good.key, b"rubbish")


def test_no_offset_passes_a_good_record_beside_one_that_the_client_can_not_decode(bench: Bench) -> None:
    places = [(partition, good_record()) for _ in range(20) for partition in range(PARTITIONS)]
    sent: list[tuple[int, int, Good]] = []
    for position, (partition, good) in enumerate(places):
        if position == len(places) // 2:
            bad = bench.send(b"k", b"rubbish", [(RawKey(b"\xff\xfe"), b"value")])
        sent.append((partition, bench.send(good.key, good.value, good.headers, partition=partition), good))
    node = bench.start()  # its first fetches have them all

    def judged() -> bool:
        return not node.alive or bench.committed().get(PARTITION, -1) > bad

    bench.rig.wait("the record behind the group, or the group's end", judged, timeout_s=30)
    # One more in each partition: where the consumer runs, it commits there once more.
    last = [bench.send_good(partition=partition) for partition in range(PARTITIONS)]
    bench.rig.wait("the last ones reserved", lambda: not node.alive or bench.reservations(*last) == len(last))
    committed = bench.committed()
    behind = [good for partition, offset, good in sent if offset < committed.get(partition, 0)]
    assert bench.reservations(*behind) == len(behind)
