"""What only librdkafka has: an idempotent producer, which ends by an error that nothing but a new one mends."""

import ctypes
from pathlib import Path

import confluent_kafka

from brewctl.config import KafkaClient
from brewctl.delivery.broker import Place, Record, UnavailableError, UnsentError
from tests.integration.client_tools import key_of, own_topic, send, sending
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


def break_off(producer: object) -> None:
    """Let it have a fatal error, by the library's own function for tests: today's brokers hardly give cause for one."""
    (path,) = Path(confluent_kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__)  # its first field
    out_of_order = confluent_kafka.KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert library.rd_kafka_test_fatal_error(handle, out_of_order, b"out of order") == 0
