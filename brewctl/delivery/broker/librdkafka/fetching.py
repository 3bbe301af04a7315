"""The options of every consumer: of group members and of readers."""

from typing import Any

from brewctl.config import Settings
from brewctl.delivery.broker.partitions import PARTITIONS

_QUEUE_FULL_MS = 10
_LEAST_FETCH_BYTES = 1_000_000  # the library takes no less


def fetching(settings: Settings) -> dict[str, Any]:
    """Return the options of every consumer: only committed records, and how many bytes it fetches ahead."""
    limits = settings.limits
    ahead = limits.consume_partition_bytes * PARTITIONS
    return {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # an event instead of a silent jump: the caller decides where to go on
        "isolation.level": "read_committed",
        "enable.partition.eof": True,  # tells how far a partition was read past markers and aborted records
        "max.partition.fetch.bytes": limits.consume_partition_bytes,
        "fetch.max.bytes": max(ahead, _LEAST_FETCH_BYTES),
        "queued.max.messages.kbytes": ahead // 1024,
        # The pause of a full queue before the next fetch. The default of a second leaves a fast reader without records.
        "fetch.queue.backoff.ms": _QUEUE_FULL_MS,
        "check.crcs": True,
    }
