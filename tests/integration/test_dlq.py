"""Dead letters, settled: each redriven once, whoever asks and however often; nothing is lost on the way."""

import contextlib
import json
import random
import threading
from collections.abc import Iterator, Sequence

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from brewctl.delivery import database
from brewctl.delivery.broker import Outcome, Place, Producer, Record, RefusedError
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.burial import Burial
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.repair.dead_letters import DeadLetters, Filter, Settlement, open_dead_letters
from brewctl.errors import BrewError
from brewctl.roles import inventory, notifications
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import good_record, kafka_admin, replaced
from tests.integration.reading import read_topic


# The tests share a rig: each starts without open letters, and knows its own records by their keys.
@pytest.fixture(scope="module")
def shared(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("dlq")) as rig:
        yield rig


@pytest.fixture
def rig(shared: Rig) -> Rig:
    with opened(shared) as letters:
        letters.drop(list(letters.find(Filter())))
    return shared


@contextlib.contextmanager
def opened(rig: Rig) -> Iterator[DeadLetters]:
    with database.connect(rig.settings) as connection, open_dead_letters(rig.settings, connection) as letters:
        yield letters


def send(rig: Rig, *records: Record) -> list[Place]:
    producer = Producer(rig.settings, node="another-team")
    try:
        outcomes = producer.send(records, timeout_s=20)
        places = [outcome for outcome in outcomes if isinstance(outcome, Place)]
        assert len(places) == len(records), outcomes
        return places
    finally:
        producer.close()


def placed(record: Record, place: Place) -> Record:
    return record._replace(partition=place.partition, offset=place.offset)


def bury(rig: Rig, *projections: Downstream, count: int = 1) -> list[Record]:
    """Put readable records into the topic, and a dead letter of each, as the version before wrote them."""
    goods = [good_record() for _ in range(count)]
    records = [Record(rig.settings.topic, good.key, good.value, good.headers) for good in goods]
    records = [placed(record, place) for record, place in zip(records, send(rig, *records), strict=True)]
    for projection in projections or (inventory.DOWNSTREAM,):
        burial = Burial(rig.settings, projection.group, node="n")
        burial.bury([(record, "postgres rejected its effect: no stock") for record in records])
        burial.close()
    return records


def copies(rig: Rig, originals: Sequence[Record]) -> list[Record]:
    """What has the originals' keys beside themselves."""
    keys = {record.key for record in originals}
    places = {(record.partition, record.offset) for record in originals}
    return [
        record
        for record in read_topic(rig.settings)
        if record.key in keys and (record.partition, record.offset) not in places
    ]


def whole(record: Record) -> tuple[object, ...]:
    return record.topic, record.partition, record.key, record.value, record.headers


def test_a_redriven_record_is_the_original_and_has_its_effect_once(rig: Rig, pool: Pool) -> None:
    originals = bury(rig, count=3)
    for _ in range(2):  # again is harmless
        with opened(rig) as letters:
            letters.redrive(letters.find(Filter()))
    again = copies(rig, originals)
    assert sorted(map(whole, again)) == sorted(map(whole, originals))
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="n")
    inbox.handle([*again, *again])
    assert (inbox.tally.effects, inbox.tally.skipped, inbox.tally.dead) == (3, 3, 0)
    with opened(rig) as letters:
        assert list(letters.find(Filter())) == []
        (first, *_) = originals
        assert [letter.key for letter in letters.find(Filter(key=first.key or b""), settled=True)] == [first.key]
        keys = {record.key for record in originals}
        settled = [letter for letter in letters.find(Filter(), settled=True) if letter.key in keys]
        # Each knows where its record is now.
        assert {letter.new_place for letter in settled} == {Place(each.partition, each.offset) for each in again}
        assert {letter.outcome for letter in settled} == {"redriven"}
        assert len(letters.redrive(settled).before) == 3
    assert len(copies(rig, originals)) == 3


def test_letters_of_one_record_share_a_copy_and_letters_of_two_do_not(rig: Rig) -> None:
    originals = bury(rig, inventory.DOWNSTREAM, notifications.DOWNSTREAM)
    # A topic that was made anew has another record at the same place.
    letter, _ = [each for each in read_topic(rig.settings, dead_letters=True) if each.key == originals[0].key]
    send(rig, letter._replace(value=b"another record"))
    # Somebody else's records in the dead-letter topic don't say where they died.
    send(rig, Record(rig.settings.dead_letter_topic, None, b"foreign", [("dlq-topic", b"t"), ("dlq-offset", b"\xff")]))
    with opened(rig) as letters:
        settled = letters.redrive(letters.find(Filter()))
    assert (len(settled.done), [why for _, why in settled.refused]) == (3, ["it does not say where it died"])
    assert sorted(str(record.value) for record in copies(rig, originals)) == sorted(
        map(str, [originals[0].value, b"another record"])
    )


def test_two_redrives_at_once_send_a_record_once(rig: Rig) -> None:
    originals = bury(rig, count=5)
    results: list[Settlement] = []

    def redrive() -> None:
        with opened(rig) as letters:
            letters._producer = GatedProducer(rig)  # type: ignore[assignment]
            chosen = list(letters.find(Filter()))
            barrier.wait(30)
            results.append(letters.redrive(chosen))

    barrier = threading.Barrier(2)
    both = [threading.Thread(target=redrive) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted((len(settled.done), len(settled.before)) for settled in results) == [(0, 5), (5, 0)]
    assert len(copies(rig, originals)) == 5


class GatedProducer:
    """Sends once somebody else waits to settle the same letters."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s > 0
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        self._rig.wait("the other one", lambda: self._rig.connection.execute(waiting).fetchone() is not None)
        return list(send(self._rig, *records))

    def close(self) -> None:
        pass


def test_a_crash_between_acknowledgement_and_commit_leaves_the_letter_open(rig: Rig, pool: Pool) -> None:
    originals = bury(rig)

    class CrashingProducer(GatedProducer):
        def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
            places = send(rig, *records)
            assert timeout_s > 0
            rig.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state = 'idle in transaction'"
            )
            return list(places)

    with contextlib.suppress(BrewError), opened(rig) as letters:
        letters._producer = CrashingProducer(rig)  # type: ignore[assignment]
        letters.redrive(letters.find(Filter()))
        pytest.fail("it did not crash")
    with opened(rig) as letters:
        assert len(letters.redrive(letters.find(Filter())).done) == 1
    again = copies(rig, originals)
    assert len(again) == 2, "sent twice"
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="n")
    inbox.handle(again)
    assert (inbox.tally.effects, inbox.tally.skipped) == (1, 1), "and has its effect once"


def test_what_kafka_does_not_take_stays_open(rig: Rig) -> None:
    notes = [("dlq-partition", b"0"), ("dlq-offset", b"0"), ("dlq-reason", b"r"), ("dlq-group", b"inventory")]
    topic = rig.settings.dead_letter_topic
    send(rig, Record(topic, b"k", b"v", [("dlq-topic", f"{rig.settings.topic}-gone".encode()), *notes]))
    send(rig, Record(topic, b"k", b"v", [("dlq-topic", b"no topic!"), *notes]))
    with opened(rig) as letters:
        with pytest.raises(BrewError, match="does not have the topic"):
            letters.redrive(letters.find(Filter()))
        assert len(list(letters.find(Filter()))) == 2


def test_a_letter_that_kafka_refuses_holds_back_no_other_of_its_key(rig: Rig) -> None:
    topic = f"{rig.settings.topic}-narrow"
    notes = [("dlq-topic", topic.encode()), ("dlq-reason", b"r"), ("dlq-group", b"inventory"), ("dlq-partition", b"0")]
    values = [random.Random(9).randbytes(5000), b"small", b"small too"]
    for number, value in enumerate(values):
        headers = [*notes, ("dlq-offset", str(number).encode())]
        send(rig, Record(rig.settings.dead_letter_topic, b"one key", value, headers))
    with kafka_admin(rig.settings) as admin:
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "3000"})])
        try:
            with opened(rig) as letters:
                settled = letters.redrive(letters.find(Filter()))
                ((refused, why),) = settled.refused
                assert (len(settled.done), refused.value) == (2, values[0])
                assert "messagesizetoolarge" in why.lower().replace(" ", "")
        finally:
            admin.delete_topics([topic])


def test_of_a_letter_too_large_for_its_topic_reason_and_place_are_kept(rig: Rig, pool: Pool) -> None:
    good = good_record()
    large = Record(rig.settings.topic, good.key, random.Random(9).randbytes(100_000), good.headers)
    (place,) = send(rig, large)
    with letters_of_at_most(rig, 50_000):
        inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="n")
        inbox.handle([placed(large, place)])
        assert (inbox.tally.dead, inbox.tally.processed) == (1, 1)
    with opened(rig) as letters:
        (letter,) = letters.find(Filter())
        assert (letter.key, letter.value, letter.headers) == (good.key, None, good.headers)
        assert letter.died_at == (rig.settings.topic, *place)
        assert letter.omitted == "value of 100000 bytes"
        ((_, why),) = letters.redrive([letter]).refused
        assert f"{rig.settings.topic} {place.partition}@{place.offset}" in why
        assert list(letters.find(Filter())) == [letter], "it stays open"


@contextlib.contextmanager
def letters_of_at_most(rig: Rig, size: int) -> Iterator[None]:
    """Let the dead-letter topic take less than the topic does."""
    topic = rig.settings.dead_letter_topic
    with kafka_admin(rig.settings) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})])
        producer = Producer(rig.settings, node="probe")
        probe = Record(topic, None, bytes(size), [])
        try:
            rig.wait("the limit", lambda: isinstance(producer.send([probe], timeout_s=5)[0], RefusedError))
            with opened(rig) as letters:  # the probes that were taken
                letters.drop(list(letters.find(Filter())))
            yield
        finally:
            producer.close()
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "2097152"})])


def test_the_commands(rig: Rig, pool: Pool) -> None:
    """One story on the command line, from the list to an empty list."""
    originals = bury(rig, inventory.DOWNSTREAM, notifications.DOWNSTREAM, count=2)
    good = good_record()
    rubbish = Record(rig.settings.topic, good.key, b"\x00\x1b[31mrubbish", replaced(good.headers, outbox_id=b"x" * 60))  # type: ignore[arg-type]
    (place,) = send(rig, rubbish)
    rubbish = placed(rubbish, place)
    Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="n").handle([rubbish])

    listed = rig.brewctl("dlq", "list")
    assert listed.returncode == 0, listed.stderr
    header, *lines = listed.stdout.splitlines()
    assert header.split() == ["id", "written", "group", "reason"]
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    found = [json.loads(line) for line in rig.brewctl("dlq", "list", "--json").stdout.splitlines()]
    assert [letter["written_at"] for letter in found] == sorted(letter["written_at"] for letter in found)
    assert {letter["state"] for letter in found} == {"open"}
    (unreadable,) = [letter for letter in found if letter["reason"].startswith("outbox-id")]
    assert (unreadable["partition"], unreadable["offset"]) == tuple(place)
    shown = rig.brewctl("dlq", "show", unreadable["id"])
    assert "00 1b 5b 33 31 6d" in shown.stdout
    assert f"{rig.settings.topic} {place.partition}@{place.offset}" in shown.stdout
    assert f"brewctl dlq redrive {unreadable['id']}" in shown.stderr
    order_id = (originals[0].key or b"").decode().removeprefix("order-")
    (readable,) = [letter["id"] for letter in found if order_id in letter["key"] and letter["group"] == "inventory"]
    assert json.loads(rig.brewctl("dlq", "show", readable, "--json").stdout)["order"]["order_id"] == order_id

    nothing = rig.brewctl("dlq", "redrive")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "needs ids, a filter or --all" in nothing.stderr
    unknown = rig.brewctl("dlq", "redrive", unreadable["id"], "5:999")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "no dead letter 5:999" in unknown.stderr
    assert len(rig.brewctl("dlq", "redrive", "--order", order_id, "--dry-run").stdout.splitlines()) == 3
    refused = rig.brewctl("dlq", "drop", unreadable["id"])
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert copies(rig, [*originals, rubbish]) == []

    assert rig.brewctl("dlq", "drop", unreadable["id"], "--yes").stdout == "dropped=1 already=0 refused=0\n"
    after = rig.brewctl("dlq", "redrive", unreadable["id"])
    assert (after.returncode, after.stdout) == (0, "redriven=0 already=1 refused=0\n")
    assert f"{unreadable['id']} dropped before" in after.stderr
    by_reason = rig.brewctl("dlq", "redrive", "--reason", "REJECTED its effect")
    assert by_reason.stdout == "redriven=4 already=0 refused=0\n"
    assert len(copies(rig, [*originals, rubbish])) == 2
    history = rig.brewctl("dlq", "list", "--all", "--order", order_id).stdout
    assert history.count("[redriven] postgres rejected") == 2
