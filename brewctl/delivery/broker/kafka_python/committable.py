"""A member's positions past transaction markers and aborted records, where there is no record to commit."""

from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata


class Passed:
    """Knows which records of one member are uncommitted, and so when a bare position may be committed."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._assignment = 0
        self._out: dict[TopicPartition, int] = {}  # the offset after the last record that was handed out

    def hand_out(self, batches: Mapping[TopicPartition, Sequence[Any]], *, assignment: int) -> None:
        """Note records that the caller gets. Those of an earlier assignment are dropped: Kafka delivers them again."""
        if assignment != self._assignment:
            self._assignment = assignment
            self._out.clear()
        self._out |= {place: batch[-1].offset + 1 for place, batch in batches.items()}

    def take_back(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Note offsets that were committed."""
        for place, committed in offsets.items():
            if self._out.get(place, 0) <= committed.offset:
                self._out.pop(place, None)

    def uncommitted(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return positions that are worth a commit; none while a record that was handed out is uncommitted."""
        if self._out:
            return {}
        found = {}
        states = self._consumer._subscription.assignment  # noqa: SLF001 - the public method may wait for a broker
        for place, state in states.items():
            # A position before the committed offset means that this offset was not in the partition any more.
            at = state.committed.offset if state.committed else 0
            if state.has_valid_position and state.position != at:
                found[place] = OffsetAndMetadata(state.position, "")
        return found
