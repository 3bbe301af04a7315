"""Reading whole topics without a consumer group: it commits nothing, and takes no partition from a member."""

import contextlib
from collections.abc import Iterator, Mapping

from brewctl.config import Settings
from brewctl.delivery.broker import clients
from brewctl.delivery.broker.record import Record


class Reader:
    """Reads topics from their beginning. It holds one fetch of each partition in memory, however long the topic is."""

    def __init__(self, settings: Settings) -> None:
        """Connect. Raises UnreachableError, BrewError."""
        self._topics = clients.chosen(settings).Topics(settings)

    def bounds(self, topic: str, *, since_ms: int | None = None) -> dict[int, tuple[int, int]]:
        """Return, for each partition, its first offset and the offset that the next record will get.

        With `since_ms` (since the epoch): instead of the first offset that of the first record with a timestamp not
        before it. Raises BrewError if the topic does not exist.
        """
        return self._topics.bounds(topic, since_ms=since_ms)

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield the records with offsets in each partition's `ranges` (end excluded), in order per partition.

        If no record comes for kafka_request_s seconds, raises UnreachableError, or BrewError if another producer's open
        transaction is the cause. Raises BrewError if records are removed during the read.
        """
        return self._topics.read(topic, ranges)

    def close(self) -> None:
        """Close the connections."""
        self._topics.close()


@contextlib.contextmanager
def open_reader(settings: Settings) -> Iterator[Reader]:
    """Open a reader. Raises UnreachableError, BrewError."""
    with clients.chosen(settings).explained(settings):
        reader = Reader(settings)
        try:
            yield reader
        finally:
            reader.close()
