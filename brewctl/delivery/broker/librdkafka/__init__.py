"""The client librdkafka, by confluent-kafka: its own threads, in C, send and read."""

from brewctl.delivery.broker.librdkafka.baseline import fetch, produce
from brewctl.delivery.broker.librdkafka.connection_settings import explained, library
from brewctl.delivery.broker.librdkafka.consumer import Member
from brewctl.delivery.broker.librdkafka.producer import Wire
from brewctl.delivery.broker.librdkafka.reader import Topics

__all__ = ["Member", "Topics", "Wire", "explained", "fetch", "library", "produce"]
