"""What only librdkafka has: an idempotent producer, which ends by an error that nothing but a new one mends."""

import ctypes
import threading
from pathlib import Path

import confluent_kafka
import pytest

from brewctl.config import KafkaClient
from brewctl.delivery import outbox
from brewctl.delivery.broker import Place, Producer, Record, UnavailableError, UnsentError
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox import Publisher
from brewctl.lifecycle import wait_until
from tests.conftest import Rig
from tests.integration.client_tools import key_of, own_topic, send, sending
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

    monkeypatch.setattr(outbox, "Producer", Noted)
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


def break_off(producer: object) -> None:
    """Let it have a fatal error, by the library's own function for tests: today's brokers hardly give cause for one."""
    (path,) = Path(confluent_kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__)  # its first field
    out_of_order = confluent_kafka.KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert library.rd_kafka_test_fatal_error(handle, out_of_order, b"out of order") == 0
