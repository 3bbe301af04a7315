"""Kafka for the rest of brewctl: administration, a producer, a consumer, a reader, and errors for users.

Only this package imports a Kafka library. BREW_KAFKA_CLIENT chooses which of two libraries Producer, Consumer and
Reader use (`clients`); the rest of brewctl does not know which. Administration always uses kafka-python-ng.

Read `clients` first: the protocols that both libraries' packages fulfil. Then `sending` and `outcomes` (the producer),
`membership` (the consumer) and `reading`; then one library's package, such as `librdkafka`. Most modules have the same
names in both.
"""

from brewctl.delivery.broker.advertised import Unreached, unreached, why_not
from brewctl.delivery.broker.clients import library
from brewctl.delivery.broker.failure_reasons import forbidden, is_forbidden, reason
from brewctl.delivery.broker.kafka_python.acls import Rule
from brewctl.delivery.broker.kafka_python.admin import (
    MIN_IN_SYNC_REPLICAS,
    REPLICATION_FACTOR,
    Admin,
    Broker,
    Partition,
    open_admin,
    require_topic,
)
from brewctl.delivery.broker.kafka_python.connection_settings import explained, require_files
from brewctl.delivery.broker.kafka_python.groups import Group, GroupMember
from brewctl.delivery.broker.kafka_python.topic_settings import TopicSetting
from brewctl.delivery.broker.membership import Consumer
from brewctl.delivery.broker.outcomes import (
    ClockError,
    ForbiddenError,
    HeldError,
    Outcome,
    Place,
    RefusedError,
    UnavailableError,
    UnsentError,
)
from brewctl.delivery.broker.overtaken import REPUBLISH, Overtaken
from brewctl.delivery.broker.partitions import PARTITIONS
from brewctl.delivery.broker.reading import Reader, open_reader
from brewctl.delivery.broker.record import Record
from brewctl.delivery.broker.sending import Producer

__all__ = [
    "MIN_IN_SYNC_REPLICAS",
    "PARTITIONS",
    "REPLICATION_FACTOR",
    "REPUBLISH",
    "Admin",
    "Broker",
    "ClockError",
    "Consumer",
    "ForbiddenError",
    "Group",
    "GroupMember",
    "HeldError",
    "Outcome",
    "Overtaken",
    "Partition",
    "Place",
    "Producer",
    "Reader",
    "Record",
    "RefusedError",
    "Rule",
    "TopicSetting",
    "UnavailableError",
    "Unreached",
    "UnsentError",
    "explained",
    "forbidden",
    "is_forbidden",
    "library",
    "open_admin",
    "open_reader",
    "reason",
    "require_files",
    "require_topic",
    "unreached",
    "why_not",
]
