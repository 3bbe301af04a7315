"""Record: the form of a Kafka record that both client libraries' packages send and return."""

from typing import NamedTuple

from brewctl.delivery.events import Headers

# A dead letter holds a record of the topic (1 MiB by default at most) and the reasons why it failed.
DEAD_LETTER_BYTES = 2 * 1024 * 1024
# The limit before compression, for records that compression makes fit.
UNCOMPRESSED_BYTES = 32 * 1024 * 1024
# Kafka's default limit for a batch is 1 MiB.
BATCH_BYTES = 1_000_000


class Record(NamedTuple):
    """A record to send, or a record that was read: then with its partition and offset."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = -1
    offset: int = -1
    timestamp_ms: int = -1  # since the epoch; negative in a record to send: the time of sending
