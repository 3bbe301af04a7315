"""What only librdkafka has: a producer that ends by an error, partitions' ends among the messages of a poll."""

import ctypes
import threading
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from brewctl.config import KafkaClient, Settings
from brewctl.delivery.broker import Place, Producer, Record, UnavailableError, UnsentError
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox import publisher as publishing
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.lifecycle import wait_until
from tests.conftest import Rig
from tests.integration.client_tools import Joined, key_of, own_topic, send, sending
from tests.integration.outbox_tools import add_event, create_order, published_ids, unpublished
from tests.integration.reading import read_topic


def test_after_a_fatal_error_of_the_idempotent_producer_a_new_one_goes_on(servers: dict[str, str]) -> None:
    """Nothing is refused for ever: the publisher keeps the rows, and sends them by a new producer."""
    with own_topic(servers["BREW_KAFKA_BROKERS"].split(","), KafkaClient.LIBRDKAFKA) as settings:
        records = [Record(settings.topic, key_of(2), b"%d" % number, []) for number in range(20)]
        with sending(settings) as producer:
            assert all(isinstance(each, Place) for each in producer.send(records[:10], timeout_s=20))
            break_off(producer._wire._producer)  # type: ignore[attr-defined]
            outcomes = producer.send(records[10:], timeout_s=20)
            assert all(isinstance(each, UnavailableError) and not isinstance(each, UnsentError) for each in outcomes)
            assert "out of order" in str(outcomes[0])
            assert len(str(outcomes[0]).splitlines()) == 1
        send(settings, records[10:])
        assert [record.value for record in read_topic(settings)] == [record.value for record in records]


@pytest.mark.parametrize("kafka_client", [KafkaClient.LIBRDKAFKA])
def test_a_publisher_goes_on_by_a_new_producer(rig: Rig, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Producer] = []

    class Noted(Producer):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(publishing, "Producer", Noted)
    publisher, stop = Publisher(rig.settings, pool, node="n"), threading.Event()
    running = threading.Thread(target=publisher.run, args=(stop,))
    running.start()
    try:
        order = create_order(rig)
        publisher.notify()
        wait_until("its event in Kafka", lambda: not unpublished(rig), timeout_s=30)
        break_off(made[0]._wire._producer)  # type: ignore[attr-defined]
        later = [add_event(rig, order) for _ in range(3)]
        publisher.notify()
        wait_until("the events after the error in Kafka", lambda: not unpublished(rig), timeout_s=30)
    finally:
        stop.set()
        publisher.notify()
        running.join()
    assert len(made) == 2
    assert published_ids(rig, order)[1:] == later


class SlowlyAssigned(Joined):
    """Is told of its partitions for so long that the library has fetched their records, and found their ends."""

    def _assigned(self, partitions: list[int]) -> None:
        super()._assigned(partitions)
        for end in (1, 2, 3, 4):
            wait_until(f"{end} records fetched", lambda end=end: self.fetched(end), timeout_s=60)  # type: ignore[misc]
            if end < 4:
                # An answer that brings some of these says of the other partitions of its broker that they have no more.
                send(self.settings, one_of_each(self.settings))

    def fetched(self, end: int) -> bool:
        member: Any = self.consumer._member
        return all(member._end_of(each) >= end for each in range(6))


def one_of_each(settings: Settings) -> list[Record]:
    return [Record(settings.topic, key_of(partition), b"", []) for partition in range(6)]


@pytest.mark.parametrize("timeout_s", [0.0, 30.0])
def test_no_record_is_passed_over_where_the_poll_that_assigns_a_partition_also_reaches_its_end(
    servers: dict[str, str], timeout_s: float
) -> None:
    """The end that is told of in that poll is not where reading begins; in one that waits, nor in one that does not."""
    with own_topic(servers["BREW_KAFKA_BROKERS"].split(","), KafkaClient.LIBRDKAFKA) as settings:
        send(settings, one_of_each(settings))
        member = SlowlyAssigned(settings)
        try:
            while not member.owned:
                member.read += member.consumer.poll(timeout_s=timeout_s)
            member.poll_until("all records", lambda: len(member.read) == 24)
        finally:
            member.consumer.close()
        assert sorted(record[4:6] for record in member.read) == [(each, at) for each in range(6) for at in range(4)]
        assert member.committed() == {}, "nobody has said that one of them is done"


def break_off(producer: object) -> None:
    """Let it have a fatal error, by the library's own function for tests: today's brokers hardly give cause for one."""
    (path,) = Path(confluent_kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__)  # its first field
    out_of_order = confluent_kafka.KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert library.rd_kafka_test_fatal_error(handle, out_of_order, b"out of order") == 0
