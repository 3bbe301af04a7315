"""A reader of topics that shares nothing with the code under test but the client library."""

from kafka import KafkaConsumer, TopicPartition

from brewctl.config import Settings
from brewctl.delivery.broker import Record
from brewctl.delivery.broker.kafka_python.connection_settings import connection


def read_topic(settings: Settings, *, dead_letters: bool = False) -> list[Record]:
    """Read everything that is in a topic now, per partition in order."""
    topic = settings.dead_letter_topic if dead_letters else settings.topic
    consumer = KafkaConsumer(**connection(settings, name="test"), consumer_timeout_ms=20_000)
    try:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        consumer.assign(places)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(places)
        records: list[Record] = []
        while any(consumer.position(place) < end for place, end in ends.items()):
            for batch in consumer.poll(timeout_ms=500).values():
                records += [
                    Record(read.topic, read.key, read.value, list(read.headers), read.partition, read.offset)
                    for read in batch
                ]
        return records
    finally:
        consumer.close()
