"""The client kafka-python-ng, with patches for faults that no setting avoids."""

from brewctl.delivery.broker.kafka_python import assumed, batches, fetching, library_patches, records  # noqa: F401 - first: patches
from brewctl.delivery.broker.kafka_python.baseline import fetch, produce
from brewctl.delivery.broker.kafka_python.connection_settings import explained, library
from brewctl.delivery.broker.kafka_python.consumer import Member
from brewctl.delivery.broker.kafka_python.producer import Wire
from brewctl.delivery.broker.kafka_python.reader import Topics

__all__ = ["Member", "Topics", "Wire", "explained", "fetch", "library", "produce"]
