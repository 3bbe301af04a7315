"""What each Kafka client promises who sends: every record's own outcome, its order, its headers, and waits that end."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from kafka.admin import NewTopic

from brewctl.config import KafkaClient, Settings
from brewctl.delivery.broker import (
    PARTITIONS,
    ClockError,
    HeldError,
    Outcome,
    Place,
    Record,
    RefusedError,
    UnavailableError,
    UnsentError,
)
from brewctl.delivery.broker.partitions import partition_for
from brewctl.errors import UnreachableError
from tests.conftest import limited
from tests.integration.client_tools import HEADERS, both_clients, key_of, own_topic, send, sending
from tests.integration.kafka_tools import kafka_admin
from tests.integration.own_broker import OwnBroker, own_broker
from tests.integration.reading import read_topic

pytestmark = both_clients
# Longer than any send here may take on a slow machine, and shorter than a request may.
BOUND_S = 20


@pytest.fixture
def settings(servers: dict[str, str], kafka_client: KafkaClient) -> Iterator[Settings]:
    with own_topic(servers["BREW_KAFKA_BROKERS"].split(","), kafka_client) as settings:
        yield limited(settings, kafka_metadata_s=1.0)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    with own_broker(tmp_path_factory.mktemp("kafka"), advertised="127.0.0.1:1", properties={}) as broker:
        yield broker


@pytest.fixture
def own(broker: OwnBroker, kafka_client: KafkaClient) -> Iterator[Settings]:
    """Settings of a broker that can be paused, and whose files can be read."""
    with own_topic([broker.address], kafka_client) as settings:
        yield limited(settings, kafka_metadata_s=1.0)


@contextlib.contextmanager
def compacted(settings: Settings) -> Iterator[str]:
    """A topic of one partition, which takes no record without a key."""
    topic = f"{settings.topic}-compacted"
    with kafka_admin(settings) as admin:
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
        try:
            with sending(settings) as producer:
                deadline = time.monotonic() + 30
                while not isinstance(producer.send([Record(topic, b"0", b"v", [])], timeout_s=5)[0], Place):
                    assert time.monotonic() < deadline
            yield topic
        finally:
            admin.delete_topics([topic])


def in_time(send: threading.Thread) -> None:
    """A thread that has to end soon."""
    send.start()
    send.join(BOUND_S)
    assert not send.is_alive(), "it waits without end"


def test_each_record_has_an_outcome_of_its_own(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    topic = settings.topic
    records = [
        Record(topic, b"a", b"1", []),
        Record(topic, b"b", b"x" * 3_000_000, []),  # more than a client lets through
        Record(topic, b"b", b"behind it", []),
        Record(topic, b"c", b"x" * 1_500_000, []),  # more than the topic takes
        Record("no topic!", b"d", b"v", []),
        Record(f"{topic}-absent", b"e", b"v", []),
        Record(topic, None, b"without a key", []),
        Record(topic, b"a", None, []),
        Record(topic, b"f", b"its time is its own", [], timestamp_ms=1_700_000_000_123),
    ]
    with sending(settings) as producer:
        outcomes = producer.send(records, timeout_s=20)
        (again,) = producer.send([Record(topic, b"b", b"once more", [])], timeout_s=20)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [*(Place, RefusedError, HeldError, RefusedError, RefusedError, UnsentError, Place, Place, Place)]
    assert isinstance(again, Place)
    assert all(len(str(outcome).splitlines()) == 1 for outcome in outcomes)
    found = {(record.partition, record.offset): record for record in read_topic(settings)}
    assert len(found) == 5, "four of them, and the one after them"
    for sent, outcome in zip(records, outcomes, strict=True):
        if isinstance(outcome, Place):
            assert found[outcome.partition, outcome.offset][1:3] == sent[1:3]
    assert capfd.readouterr() == ("", ""), "neither client prints anything"


def test_where_no_order_is_kept_one_with_the_same_key_is_taken(settings: Settings) -> None:
    with sending(settings, ordered=False) as producer:
        records = [Record(settings.topic, b"k", value, []) for value in (b"x" * 3_000_000, b"small")]
        refused, taken = producer.send(records, timeout_s=20)
    assert (type(refused), type(taken)) == (RefusedError, Place)


def test_a_refusal_names_only_the_guilty_record_of_a_batch(settings: Settings) -> None:
    with compacted(settings) as topic, sending(settings) as producer:
        records = [Record(topic, None if number == 7 else b"k%d" % (number % 3), b"v", []) for number in range(20)]
        outcomes = producer.send(records, timeout_s=20)
        assert [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Place)] == [7]
        assert isinstance(outcomes[7], RefusedError)
        # It goes on in the order of each key.
        for key in (b"k0", b"k1", b"k2"):
            offsets = [
                outcome.offset
                for record, outcome in zip(records, outcomes, strict=True)
                if record.key == key and isinstance(outcome, Place)
            ]
            assert offsets == sorted(offsets)
        assert all(isinstance(each, Place) for each in producer.send(records[:5], timeout_s=20))


def test_a_time_that_the_broker_does_not_take_is_no_fault_of_the_record(settings: Settings) -> None:
    topic = f"{settings.topic}-strict"
    with kafka_admin(settings) as admin:
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"message.timestamp.before.max.ms": "3600000"})])
        try:
            with sending(settings) as producer:
                outcomes: list[Outcome] = []
                deadline = time.monotonic() + 30
                while not outcomes or type(outcomes[1]) is UnsentError:  # not there yet
                    assert time.monotonic() < deadline
                    now, then = int(time.time() * 1000), 1_000_000_000_000
                    records = [Record(topic, b"k", b"v", [], timestamp_ms=then), Record(topic, b"l", b"v", [])]
                    outcomes = [producer.send([each], timeout_s=5)[0] for each in records]
        finally:
            admin.delete_topics([topic])
    assert isinstance(outcomes[0], ClockError), outcomes
    assert "2001-09-09T01:46:40+00:00 is too far" in str(outcomes[0])
    assert isinstance(outcomes[1], Place), (outcomes, now)


def test_every_header_is_kept_and_so_is_the_time(settings: Settings) -> None:
    sent = [
        Record(settings.topic, b"key-%d" % number, b"v", HEADERS, timestamp_ms=1_700_000_000_000 + number)
        for number in range(100)
    ]
    places = send(settings, sent)
    found = {(record.partition, record.offset): record for record in read_topic(settings)}
    assert [found[place.partition, place.offset].headers for place in places] == [HEADERS] * 100


def test_what_only_compression_makes_fit_is_taken_compressed(settings: Settings) -> None:
    large = Record(settings.dead_letter_topic, b"k", b"x" * 12_000_000, HEADERS)
    with sending(settings, compressed=True) as producer:
        assert isinstance(producer.send([large], timeout_s=30)[0], Place)
    with sending(settings) as producer:
        assert isinstance(producer.send([large], timeout_s=30)[0], RefusedError)
    (read,) = read_topic(settings, dead_letters=True)
    assert (read.value, read.headers) == (large.value, HEADERS)


def test_what_a_send_has_for_a_partition_is_one_batch_and_a_key_keeps_its_order(
    own: Settings, broker: OwnBroker
) -> None:
    key, other = key_of(0), key_of(0, 1)
    with sending(own) as producer:
        for turn in range(3):  # the second and third find the client at rest
            records = [
                Record(own.topic, other if number % 9 == 0 else key, b"%d" % (turn * 500 + number), [])
                for number in range(500)
            ]
            assert all(isinstance(each, Place) for each in producer.send(records, timeout_s=20))
        for number in range(5):
            producer.send([Record(own.topic, key, b"%d" % (1500 + number), [])], timeout_s=20)
    assert broker.batches(own.topic) == [500, 500, 500, 1, 1, 1, 1, 1]
    for each in (key, other):
        values = [int(record.value or b"") for record in read_topic(own) if record.key == each]
        assert values == sorted(values)


def test_a_key_is_in_the_partition_that_kafkas_own_rule_gives_it(settings: Settings) -> None:
    keys = [b"", b"a", b"\xff\x00", "größe".encode(), *(f"order-{number}".encode() for number in range(60))]
    with sending(settings) as producer:
        places = producer.send([Record(settings.topic, key, b"v", []) for key in keys], timeout_s=20)
    expected = [partition_for(key, PARTITIONS) for key in keys]
    assert [place.partition for place in places if isinstance(place, Place)] == expected
    assert len(set(expected)) == PARTITIONS


def test_a_send_of_more_than_the_client_holds_is_taken_whole(settings: Settings) -> None:
    records = [Record(settings.topic, b"%d" % (number % 50), b"%d" % number, []) for number in range(110_000)]
    with sending(settings) as producer:
        outcomes = producer.send(records, timeout_s=120)
    assert all(isinstance(each, Place) for each in outcomes)
    last: dict[tuple[int, bytes | None], int] = {}
    for record, outcome in zip(records, outcomes, strict=True):
        assert isinstance(outcome, Place)
        place = (outcome.partition, record.key)
        assert outcome.offset > last.get(place, -1)
        last[place] = outcome.offset


def test_a_silent_broker_lets_a_send_end_and_a_new_producer_go_on(own: Settings, broker: OwnBroker) -> None:
    outcomes: list[Outcome] = []
    with sending(own) as producer:
        first = Record(own.topic, key_of(1), b"0", [])
        assert isinstance(producer.send([first], timeout_s=10)[0], Place)

        def some(number: int) -> list[Record]:
            return [first._replace(value=b"%d" % number), Record(f"{own.topic}.dlq", b"k", b"v", [])]

        with broker.paused():
            in_time(threading.Thread(target=lambda: outcomes.extend(producer.send(some(1), timeout_s=1.0))))
            in_time(threading.Thread(target=producer.abandon))
            made: list[object] = []

            def make() -> None:
                with pytest.raises(UnreachableError) as raised, sending(limited(own, kafka_connect_s=1.0)):
                    pass
                made.append(raised.value)

            in_time(threading.Thread(target=make))
            assert made
    assert isinstance(outcomes[0], UnavailableError)
    assert not isinstance(outcomes[0], UnsentError)
    assert isinstance(outcomes[1], UnavailableError)
    deadline = time.monotonic() + 60
    while True:
        try:
            with sending(own) as producer:
                if isinstance(producer.send(some(2)[:1], timeout_s=5)[0], Place):
                    break
        except UnreachableError:
            pass
        assert time.monotonic() < deadline
    values = [record.value for record in read_topic(own)]
    # The paused broker may have had the second one in its hands; then it is before the third.
    assert values in ([b"0", b"2"], [b"0", b"1", b"2"])


def test_what_is_abandoned_before_it_left_never_arrives(own: Settings) -> None:
    with sending(own) as producer:
        assert isinstance(producer.send([Record(own.topic, b"k", b"taken", [])], timeout_s=20)[0], Place)
        producer._wire.put(Record(own.topic, b"k", b"dropped", []), PARTITIONS, time.monotonic() + 5)
        in_time(threading.Thread(target=producer.abandon))
    send(own, [Record(own.topic, key_of(partition), b"later", []) for partition in range(6)])
    assert b"dropped" not in {record.value for record in read_topic(own)}
