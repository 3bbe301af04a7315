"""The record, as every client of Kafka here takes and gives it."""

from typing import NamedTuple

from brewctl.delivery.events import Headers

# A dead letter is the largest record of the topic (1 MiB by default) and the reasons for its death.
DEAD_LETTER_BYTES = 2 * 1024 * 1024
# What compression is to make fit may be so large before it.
UNCOMPRESSED_BYTES = 32 * 1024 * 1024
# Kafka's default limit for a batch is 1 MiB.
BATCH_BYTES = 1_000_000


class Record(NamedTuple):
    """A record to send, or one that was read (then with its partition and offset)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = -1
    offset: int = -1
    timestamp_ms: int = -1  # since the epoch; of a record to send, negative: by this machine's clock
