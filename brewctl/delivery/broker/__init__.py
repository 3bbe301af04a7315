"""Kafka, as the rest of brewctl sees it: administration, a producer, a consumer, its errors in the user's words.

The only place that imports `kafka`, so that another client of the same shape can take its place.
"""

from brewctl.delivery.broker import fetching, patches, records  # noqa: F401 - first: they mend the library
from brewctl.delivery.broker.admin import (
    MIN_IN_SYNC_REPLICAS,
    PARTITIONS,
    REPLICATION_FACTOR,
    Admin,
    Broker,
    Group,
    Member,
    Partition,
    open_admin,
    require_topic,
)
from brewctl.delivery.broker.advertised import Unreached, unreached, why_not
from brewctl.delivery.broker.client import Record, UnavailableError, explained, library, reason
from brewctl.delivery.broker.consumer import Consumer
from brewctl.delivery.broker.producer import ClockError, HeldError, Outcome, Place, Producer, RefusedError, UnsentError
from brewctl.delivery.broker.reader import Reader, open_reader

__all__ = [
    "MIN_IN_SYNC_REPLICAS",
    "PARTITIONS",
    "REPLICATION_FACTOR",
    "Admin",
    "Broker",
    "ClockError",
    "Consumer",
    "Group",
    "HeldError",
    "Member",
    "Outcome",
    "Partition",
    "Place",
    "Producer",
    "Reader",
    "Record",
    "RefusedError",
    "UnavailableError",
    "Unreached",
    "UnsentError",
    "explained",
    "library",
    "open_admin",
    "open_reader",
    "reason",
    "require_topic",
    "unreached",
    "why_not",
]
