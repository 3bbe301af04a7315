"""The options of everything that reads."""

from typing import Any

from brewctl.config import Settings
from brewctl.delivery.broker.partitions import PARTITIONS

_QUEUE_FULL_MS = 10
_LEAST_FETCH_BYTES = 1_000_000  # the library takes no less


def fetching(settings: Settings) -> dict[str, Any]:
    """Return the options of everything that reads: committed records alone, and how many bytes ahead."""
    limits = settings.limits
    ahead = limits.consume_partition_bytes * PARTITIONS
    return {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # it is said, and where to go on is ours to decide
        "isolation.level": "read_committed",
        "enable.partition.eof": True,  # positions behind what is no record
        "max.partition.fetch.bytes": limits.consume_partition_bytes,
        "fetch.max.bytes": max(ahead, _LEAST_FETCH_BYTES),
        "queued.max.messages.kbytes": ahead // 1024,
        # Where so much waits, it looks again so soon; by default after a second, in which a fast reader has nothing.
        "fetch.queue.backoff.ms": _QUEUE_FULL_MS,
        "check.crcs": True,
    }
