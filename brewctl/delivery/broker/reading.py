"""Reading whole topics, as a member of no group: nothing is committed, no partition is taken from anyone."""

import contextlib
from collections.abc import Iterator, Mapping

from brewctl.config import Settings
from brewctl.delivery.broker import clients
from brewctl.delivery.broker.record import Record


class Reader:
    """Reads topics from their beginning. Memory: one fetch of each partition, however long the topic is."""

    def __init__(self, settings: Settings) -> None:
        """Connect. Raises UnreachableError, BrewError."""
        self._topics = clients.chosen(settings).Topics(settings)

    def bounds(self, topic: str, *, since_ms: int | None = None) -> dict[int, tuple[int, int]]:
        """Return, for each partition, the first offset there is and the one that the next record will have.

        `since_ms`: the first of a record that is no older, by its timestamp, since the epoch. Raises BrewError where
        there is no such topic.
        """
        return self._topics.bounds(topic, since_ms=since_ms)

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield the records with offsets in each partition's `ranges` (end excluded), in order per partition.

        Raises, where nothing more comes for kafka_request_s seconds, UnreachableError, or BrewError where that is
        because of another producer's open transaction; BrewError where records that were there are gone.
        """
        return self._topics.read(topic, ranges)

    def close(self) -> None:
        """Let the connections go."""
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
