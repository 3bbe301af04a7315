"""A member that goes on behind records that are gone: it is told, once, whether the group lost them or is only new."""

from collections.abc import Iterator

import pytest
from confluent_kafka import Producer as Transactional

from brewctl.config import KafkaClient, Settings
from brewctl.delivery.broker import Overtaken, Record, open_admin
from tests.conftest import limited
from tests.integration.client_tools import Joined, both_clients, joined, key_of, own_topic, send
from tests.integration.kafka_tools import remove_records


@pytest.fixture
def settings(servers: dict[str, str], kafka_client: KafkaClient) -> Iterator[Settings]:
    with own_topic(servers["BREW_KAFKA_BROKERS"].split(","), kafka_client) as settings:
        yield settings


def fill(settings: Settings, count: int, *partitions: int) -> None:
    """Send so many records to each of these partitions."""
    send(settings, [Record(settings.topic, key_of(each), b"v", []) for each in partitions for _ in range(count)])


def commit(settings: Settings, offsets: dict[int, int]) -> None:
    with open_admin(settings) as admin:
        admin.commit(f"g-{settings.topic}", settings.topic, offsets)


def by_partition(member: Joined) -> list[Overtaken]:
    return sorted(member.overtaken, key=lambda each: each.partition)


@both_clients
def test_a_group_whose_next_records_were_removed_is_told_how_many(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Partition 0: below the first record. 1: never committed, by a group that has read others. 2: nothing is gone."""
    fill(settings, 10, 0, 1, 2)
    commit(settings, {0: 2, 2: 5})
    remove_records(settings, {0: 4, 1: 10, 2: 5})
    with joined(settings) as member:
        member.poll_until("all that is there", lambda: len(member.read) == 6 + 5 and len(member.overtaken) == 2)
        assert by_partition(member) == [Overtaken(0, 2, 4), Overtaken(1, None, 10)]
        assert [each.removed for each in by_partition(member)] == [2, 10]
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 2
    assert all("[error" in line and "offset_lost" in line and "outbox republish --missing" in line for line in said)
    assert any("2 records are gone, offsets 2 to 3" in line for line in said)
    assert any("10 records are gone, offsets 0 to 9" in line for line in said)


@both_clients
def test_a_new_group_is_told_that_it_does_not_get_the_beginning_and_the_next_member_is_not(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(settings, 3, 0, 1, 2, 3)
    remove_records(settings, {0: 3, 1: 2, 2: 1})  # and of partition 3, of which nothing is told, none
    # One record at a time: what is told of a partition, and committed, must not make the group an old one for the next.
    with joined(limited(settings, consume_records=1)) as member:
        member.poll_until("all that is there", lambda: len(member.read) == 6 and len(member.overtaken) == 3)
        assert by_partition(member) == [Overtaken(each, None, 3 - each, new=True) for each in range(3)]
        assert member.committed() == {0: 3, 1: 2, 2: 1}
    said = capfd.readouterr().out
    assert "[warning" in said
    assert "group_begins_late" in said
    assert "offset_lost" not in said
    with joined(settings) as member:
        member.poll_until("the records again, which nobody committed", lambda: len(member.read) == 6)
        assert member.overtaken == []


@both_clients
def test_records_that_were_aborted_are_not_taken_for_removed_ones(settings: Settings) -> None:
    producer = Transactional({"bootstrap.servers": ",".join(settings.brokers), "transactional.id": settings.topic})
    producer.init_transactions(60)
    producer.begin_transaction()
    producer.produce(settings.topic, value=b"aborted", partition=0)
    producer.flush(30)
    producer.abort_transaction(30)
    fill(settings, 1, 0)
    with joined(settings) as member:
        member.poll_until("the record behind them", lambda: len(member.read) == 1)
        assert member.read[0].offset > 0
        assert member.overtaken == []


@both_clients
def test_a_partition_that_was_cut_off_is_told_without_a_number(settings: Settings) -> None:
    fill(settings, 3, 0)
    commit(settings, {0: 1000})
    with joined(settings) as member:
        member.poll_until("what is there", lambda: len(member.read) == 3)
        assert member.overtaken == [Overtaken(0, 1000, 0)]
        assert member.overtaken[0].removed == 0
