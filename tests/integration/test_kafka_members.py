"""What each Kafka client promises a member of a group: whole records in order, time to leave, and stops that end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer as Transactional
from kafka.admin import ACL, ACLFilter, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from brewctl.config import KafkaClient, Settings
from brewctl.delivery.broker import Record, UnavailableError, UnsentError, open_admin, open_reader
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from tests.conftest import limited
from tests.integration.client_tools import (
    HEADERS,
    Joined,
    both_clients,
    joined,
    key_of,
    own_topic,
    send,
    sending,
    with_client,
)
from tests.integration.kafka_tools import RawKey, kafka_admin, raw_client, remove_records, send_raw
from tests.integration.own_broker import OwnBroker, own_broker

# Longer than a member may take to leave on a slow machine, and shorter than a session or a request.
BOUND_S = 25
NG, LIBRDKAFKA = KafkaClient.KAFKA_PYTHON_NG, KafkaClient.LIBRDKAFKA
ALL = [0, 1, 2, 3, 4, 5]
# Everybody may do everything with what nobody has made a rule for.
RIGHTS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@pytest.fixture
def settings(servers: dict[str, str], kafka_client: KafkaClient) -> Iterator[Settings]:
    with own_topic(servers["BREW_KAFKA_BROKERS"].split(","), kafka_client) as settings:
        yield settings


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    with own_broker(tmp_path_factory.mktemp("kafka"), advertised="127.0.0.1:1", properties=RIGHTS) as broker:
        yield broker


def numbered(settings: Settings, count: int, *, partitions: int = 6) -> list[Record]:
    keys = [key_of(partition) for partition in range(partitions)]
    return [Record(settings.topic, keys[each % partitions], b"%d" % each, HEADERS) for each in range(count)]


def offsets(records: list[Record]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for record in records:
        found.setdefault(record.partition, []).append(record.offset)
    return found


@both_clients
def test_every_record_is_read_whole_and_in_order_and_committed(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    sent = numbered(settings, 3000)
    send(settings, sent)
    with joined(settings) as member:
        member.poll_until("all records", lambda: len(member.read) == len(sent))
        assert all(record.headers == HEADERS for record in member.read)
        assert {record.value for record in member.read} == {record.value for record in sent}
        assert offsets(member.read) == {partition: list(range(500)) for partition in range(6)}
        assert {record[1:3] for record in member.read} == {record[1:3] for record in sent}
        assert all(record.topic == settings.topic and record.timestamp_ms > 0 for record in member.read)
        assert member.consumer.commit(member.read[:1]) == ""
        assert member.committed() == {member.read[0].partition: 1}
        assert member.consumer.commit(member.read) == ""
    assert member.committed() == dict.fromkeys(range(6), 500)
    assert member.told == [f"assigned {ALL}"]
    send(settings, sent[:6])
    with joined(settings) as member:
        member.poll_until("what is behind the offsets", lambda: len(member.read) == 6)
        assert offsets(member.read) == {partition: [500] for partition in range(6)}
    assert capfd.readouterr() == ("", ""), "neither client prints anything"


@both_clients
def test_headers_as_other_producers_send_them(settings: Settings) -> None:
    """A null value becomes an empty one; of a name that is not UTF-8 each byte can be told."""
    headers = [(RawKey(b"caf\xe9"), b"1"), ("null", None), ("plain", b"2")]
    with raw_client(settings) as client:
        for number in range(3):
            send_raw(client, (settings.topic, 4), b"k", b"%d" % number, headers)
            send_raw(client, (settings.topic, 4), b"k", None, [("plain", b"3")])
    read_as = [[("caf\\xe9", b"1"), ("null", b""), ("plain", b"2")], [("plain", b"3")]] * 3
    with joined(settings) as member:
        member.poll_until("all", lambda: len(member.read) == 6)
    with open_reader(settings) as reader:
        read = [record for some in reader.read(settings.topic, reader.bounds(settings.topic)) for record in some]
    for records in (member.read, read):
        assert [record.headers for record in records] == read_as
        assert [record.value for record in records] == [b"0", None, b"1", None, b"2", None]


@both_clients
def test_a_reader_reads_a_topic_as_often_as_it_is_asked(settings: Settings) -> None:
    settings = limited(settings, kafka_request_s=5.0)
    send(settings, numbered(settings, 12))
    with open_reader(settings) as reader:
        for _ in range(2):
            bounds = reader.bounds(settings.topic)
            assert sum(map(len, reader.read(settings.topic, bounds))) == 12


@both_clients
def test_a_record_that_is_larger_than_a_fetch_is_read(settings: Settings) -> None:
    settings = limited(settings, consume_partition_bytes=4096)
    send(settings, [Record(settings.topic, key_of(0), b"x" * size, []) for size in (10, 900_000, 10, 500_000, 10)])
    with joined(settings) as member:
        member.poll_until("all", lambda: len(member.read) == 5)
    assert [len(record.value or b"") for record in member.read] == [10, 900_000, 10, 500_000, 10]


@both_clients
def test_an_offset_behind_markers_and_what_was_aborted_is_committed(settings: Settings) -> None:
    options = {"bootstrap.servers": ",".join(settings.brokers), "transactional.id": settings.topic}
    producer = Transactional(options)
    producer.init_transactions(60)

    def transact(values: list[bytes], *, keep: bool) -> None:
        producer.begin_transaction()
        for value in values:
            producer.produce(settings.topic, value=value, partition=2)
        producer.flush(30)
        producer.commit_transaction(30) if keep else producer.abort_transaction(30)

    transact([b"1", b"2"], keep=False)
    transact([b"3"], keep=True)
    with joined(settings) as member:
        member.poll_until("what was committed", lambda: len(member.read) == 1)
        assert member.read[0][2:6] == (b"3", [], 2, 3)
        for _ in range(3):
            member.poll()
        assert member.committed() == {}, "a record is out"
        assert member.consumer.commit(member.read) == ""
        member.poll_until("an offset behind the marker", lambda: member.committed() == {2: 5})
        transact([b"4"], keep=False)
        member.poll_until("an offset behind what was aborted", lambda: member.committed() == {2: 7})
    assert len(member.read) == 1


@both_clients
@pytest.mark.parametrize("wanted", [2, 1000])
def test_an_offset_that_is_not_there_is_told_and_reading_goes_on_at_the_first(
    settings: Settings, wanted: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Removed by retention, or behind the end of a partition that was made anew."""
    send(settings, numbered(settings, 60))
    with open_admin(settings) as admin:
        admin.commit(f"g-{settings.topic}", settings.topic, {0: wanted, 1: 10})
    if wanted < 10:
        remove_records(settings, {0: 4})
    with joined(settings) as member:
        first = 4 if wanted < 10 else 0
        member.poll_until("all that is there", lambda: len(member.read) == 40 + 10 - first)
        assert offsets(member.read)[0] == list(range(first, 10))
        assert 1 not in offsets(member.read)
        assert member.consumer.commit(member.read) == ""
    assert member.committed() == dict.fromkeys(ALL, 10)
    said = capfd.readouterr().out
    assert 1 <= said.count("offset_lost") <= member.consumer.assignments, "once an assignment at most"
    assert f"wanted={wanted}" in said
    assert f"first={first}" in said
    assert ("retention removed them" if wanted < 10 else "was truncated") in said


@pytest.mark.parametrize(
    ("kafka_client", "other"), [(NG, NG), (NG, LIBRDKAFKA), (LIBRDKAFKA, NG), (LIBRDKAFKA, LIBRDKAFKA)]
)
def test_members_of_either_client_share_a_group_and_each_has_time_to_finish_before_it_leaves(
    settings: Settings, other: KafkaClient
) -> None:
    """As in a rolling change from one to the other: nothing is read twice, and nothing is passed over."""
    sent = numbered(settings, 600)
    send(settings, sent[:300])
    with joined(settings, name="one") as one:
        one.poll_until("the first half", lambda: len(one.read) == 300)
        owned: list[list[int]] = []

        def finish() -> None:
            owned.append(list(two.owned))
            one.consumer.stay_while_leaving()
            assert one.consumer.commit(one.read) == ""

        one.before_leaving = finish
        with joined(with_client(settings, other), name="two") as two:
            polling = threading.Event()

            def poll() -> None:
                while not polling.is_set():
                    two.poll()

            thread = threading.Thread(target=poll)
            thread.start()
            try:
                one.poll_until("both with half of it", lambda: [len(one.owned), len(two.owned)] == [3, 3])
                assert sorted(one.owned + two.owned) == ALL
                assert owned == [[]], "it still had them when it was told"
                send(settings, sent[300:])
                one.poll_until("all records", lambda: len(one.read) + len(two.read) == 600)
                with open_admin(settings) as admin:
                    group = admin.group(f"g-{settings.topic}", settings.topic)
                assert [member.client_id for member in group.members] == ["one", "two"]
                assert group.assignor == "roundrobin"
                one.before_leaving = lambda: None
                assert one.consumer.commit(one.read) == ""
            finally:
                polling.set()
                thread.join()
            assert two.consumer.commit(two.read) == ""
        # It said goodbye: long before its session ends, the other has all again.
        one.poll_until("all partitions", lambda: one.owned == ALL)
        assert {record.value for record in one.read + two.read} == {record.value for record in sent}
        assert len(one.read + two.read) == 600
    assert one.committed() == dict.fromkeys(ALL, 100)


@both_clients
def test_keeping_alive_reads_nothing_and_serves_a_rebalance(settings: Settings) -> None:
    settings = limited(settings, consume_records=7, session_s=6.0)
    send(settings, numbered(settings, 40, partitions=1))
    with joined(settings) as one:
        one.poll_until("some", lambda: len(one.read) >= 7)
        for _ in range(10):
            one.consumer.keep_alive()
            time.sleep(settings.limits.heartbeat_s / 10)
        assert one.told == [f"assigned {ALL}"], "it kept its partitions"
        one.poll_until("the rest", lambda: len(one.read) == 40)
        assert offsets(one.read) == {0: list(range(40))}
        before = one.consumer.assignments
        with joined(settings, name="two") as two:
            thread = threading.Thread(target=lambda: two.poll_until("its share", lambda: len(two.owned) == 3))
            thread.start()
            while thread.is_alive():
                one.consumer.keep_alive()
            thread.join()
        assert one.consumer.assignments > before
        # Nothing was committed: all comes again, whichever member it was read by.
        one.read.clear()
        # Perhaps some of it twice: the leave of the other moves partitions once more.
        one.poll_until("all again", lambda: {record.offset for record in one.read} == set(range(40)))


@both_clients
def test_what_is_read_once_partitions_left_and_came_back_though_it_kept_alive_before(settings: Settings) -> None:
    """Paused as they left, they would stay so, and their records unread."""
    settings = limited(settings, consume_records=7)
    send(settings, numbered(settings, 40, partitions=1))
    with joined(settings) as one:
        one.poll_until("some", lambda: len(one.read) >= 7)
        one.consumer.keep_alive()
        with joined(settings, name="two") as two:
            thread = threading.Thread(target=lambda: two.poll_until("its share", lambda: len(two.owned) == 3))
            thread.start()
            deadline = time.monotonic() + 60
            while "leaving" not in one.told:
                one.consumer.keep_alive()
                assert time.monotonic() < deadline
            one.read.clear()
            one.poll_until("the share of each", lambda: not thread.is_alive())
            thread.join()
        one.poll_until("all again", lambda: {record.offset for record in one.read} == set(range(40)))


@both_clients
def test_it_says_whether_records_wait_for_its_next_poll(settings: Settings) -> None:
    settings = limited(settings, consume_records=5)
    send(settings, numbered(settings, 60))
    with joined(settings) as one:
        one.poll_until("the first", lambda: bool(one.read))
        assert one.consumer.behind, "in memory, or at the broker"
        one.poll_until("all", lambda: len(one.read) == 60)
        one.poll_until("its end is known", lambda: not one.consumer.behind)
        send(settings, numbered(settings, 60))
        one.poll_until("some more", lambda: len(one.read) > 60)
        assert one.consumer.behind
        # What it was told of partitions that it had before counts no more: it begins again at what is committed.
        one.poll_until("all of them", lambda: len(one.read) == 120)
        assert one.consumer.commit(one.read[:90]) == ""
        with joined(settings, name="two") as two:
            thread = threading.Thread(target=lambda: two.poll_until("its share", lambda: len(two.owned) == 3))
            thread.start()
            one.poll_until("half", lambda: not thread.is_alive() and len(one.owned) == 3)
            thread.join()
        one.poll_until("all partitions", lambda: one.owned == ALL)
        one.poll_until("nothing left", lambda: not one.consumer.behind and not one.poll())
        assert one.consumer.commit(one.read) == ""
    assert one.committed() == dict.fromkeys(ALL, 20)


@both_clients
def test_what_is_behind_an_open_transaction_does_not_wait_for_its_next_poll(settings: Settings) -> None:
    producer = Transactional({"bootstrap.servers": ",".join(settings.brokers), "transactional.id": settings.topic})
    producer.init_transactions(60)
    producer.begin_transaction()
    producer.produce(settings.topic, value=b"held", partition=0)
    producer.flush(30)
    send(settings, numbered(settings, 12))
    with joined(settings) as one:
        one.poll_until("what can be read", lambda: len(one.read) == 10)
        one.poll_until("that it is not behind", lambda: not one.consumer.behind)
        producer.commit_transaction(30)
        one.poll_until("the rest", lambda: len(one.read) == 13)
        one.poll_until("all", lambda: not one.consumer.behind)


@both_clients
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_codec_is_read_or_ends_the_member_with_one_line_and_nothing_lost(settings: Settings, codec: str) -> None:
    other = Transactional({"bootstrap.servers": ",".join(settings.brokers), "compression.type": codec})
    for number in range(20):
        other.produce(settings.topic, value=b"%d" % number * 100, partition=0)
    other.flush(30)
    ended = ""
    with joined(settings) as one:
        try:
            one.poll_until("all", lambda: len(one.read) == 20)
        except BrewError as error:
            ended = error.message
    if ended:
        assert settings.kafka_client == NG
        assert codec != "gzip"
        assert f"kafka refused consumer group g-{settings.topic}: " in ended
        assert len(ended.splitlines()) == 1
        assert one.read == []
    assert one.committed() == {}


@both_clients
@pytest.mark.parametrize("what", ["topic", "group"])
def test_a_member_without_the_right_to_read_ends_with_one_line_and_commits_nothing(
    kafka_client: KafkaClient, broker: OwnBroker, what: str
) -> None:
    with own_topic([broker.address], kafka_client) as settings:
        send(settings, numbered(settings, 12))
        name = settings.topic if what == "topic" else f"g-{settings.topic}"
        deny(settings, ResourceType.TOPIC if what == "topic" else ResourceType.GROUP, name, ACLOperation.READ)
        with joined(settings) as one:
            with pytest.raises(BrewError) as raised:
                one.poll_until("a refusal", lambda: False)
            assert f"this user may not READ {what} {name}" in raised.value.message
            assert len(raised.value.message.splitlines()) == 1
            assert one.read == []
        assert one.committed() == {}


@both_clients
def test_who_has_no_right_to_send_is_told_and_its_records_are_not_refused_for_ever(
    kafka_client: KafkaClient, broker: OwnBroker
) -> None:
    """An administrator gives the right: nothing is wrong with the records."""
    with own_topic([broker.address], kafka_client) as settings:
        deny(settings, ResourceType.TOPIC, settings.topic, ACLOperation.WRITE)
        with sending(settings) as producer:
            outcomes = producer.send(numbered(settings, 12), timeout_s=5)
        assert {type(outcome) for outcome in outcomes} <= {UnavailableError, UnsentError}
        assert "this user has no right to " in str(outcomes[0])
        assert len(str(outcomes[0]).splitlines()) == 1


def deny(settings: Settings, kind: ResourceType, name: str, operation: ACLOperation) -> None:
    """Forbid one thing that may be done with a topic or group, and allow the rest."""
    rules = ((ACLOperation.ALL, ACLPermissionType.ALLOW), (operation, ACLPermissionType.DENY))
    with kafka_admin(settings) as admin:
        acls = [ACL("User:ANONYMOUS", "*", what, permission, ResourcePattern(kind, name)) for what, permission in rules]
        assert admin.create_acls(acls)["failed"] == []
        anything = (None, "*", ACLOperation.ANY, ACLPermissionType.ANY)
        there = ACLFilter(*anything, ResourcePattern(kind, name))
        wait_until("the broker knows them", lambda: len(admin.describe_acls(there)[0]) == len(acls), timeout_s=30)


@both_clients
def test_a_commit_as_partitions_leave_ends_in_time_though_the_broker_is_silent(
    kafka_client: KafkaClient, broker: OwnBroker
) -> None:
    with own_topic([broker.address], kafka_client) as settings:
        send(settings, numbered(settings, 6))
        hasty = limited(settings, kafka_leave_s=1.0)
        ready, leaving, paused, over = (threading.Event() for _ in range(4))

        def be_the_one() -> None:
            one = Joined(hasty)

            def commit() -> None:
                leaving.set()
                paused.wait(60)
                one.stop.set()
                one.consumer.commit(one.read)

            one.before_leaving = commit
            one.poll_until("records", lambda: len(one.read) == 6)
            ready.set()
            with contextlib.suppress(UnavailableError, BrewError):
                one.poll_until("that it leaves", leaving.is_set)
            one.consumer.close()

        def be_the_other() -> None:
            two = Joined(hasty, name="two")
            with contextlib.suppress(UnavailableError, BrewError):
                while not over.is_set():
                    two.poll()
            two.stop.set()
            two.consumer.close()

        threads = [threading.Thread(target=target, daemon=True) for target in (be_the_one, be_the_other)]
        threads[0].start()
        assert ready.wait(60)
        threads[1].start()
        assert leaving.wait(60)
        with broker.paused():
            paused.set()
            threads[0].join(BOUND_S)
            ended = not threads[0].is_alive()
            over.set()
        for thread in threads:
            thread.join(60)
        assert ended, "it waits without end"


@both_clients
def test_a_stop_while_the_broker_is_silent_ends_in_time(kafka_client: KafkaClient, broker: OwnBroker) -> None:
    with own_topic([broker.address], kafka_client) as settings:
        member = Stopping(settings)
        with broker.paused():
            member.end_in_time()


def test_a_stop_while_no_broker_is_there_ends_in_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    with own_broker(tmp_path_factory.mktemp("kafka"), advertised="127.0.0.1:1", properties={}) as broker:
        members = []
        for client in KafkaClient:
            settings = Settings(brokers=(broker.address,), topic=f"t-{client}", kafka_client=client)
            topics.create(settings)
            members.append(Stopping(settings))
        os.kill(broker.pid, signal.SIGKILL)
        for member in members:
            member.end_in_time()


class Stopping:
    """A member with records in hand, in a thread of its own, as a role's is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = limited(settings, kafka_leave_s=1.0)
        send(settings, numbered(settings, 6))
        self._has_read, self._may_stop = threading.Event(), threading.Event()
        self._answers: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._has_read.wait(60)

    def _run(self) -> None:
        member = Joined(self._settings)
        member.poll_until("records", lambda: len(member.read) == 6)
        self._has_read.set()
        self._may_stop.wait(60)
        member.stop.set()
        self._answers.append(member.consumer.commit(member.read))
        with contextlib.suppress(UnavailableError, BrewError):
            for _ in range(3):
                member.poll()
        member.consumer.close()

    def end_in_time(self) -> None:
        self._may_stop.set()
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive(), "it waits without end"
        assert self._answers[0], "it says that nothing was committed"
