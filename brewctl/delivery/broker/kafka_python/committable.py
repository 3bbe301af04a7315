"""How far a member has come where there was no record to commit: behind markers, and what was aborted."""

from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata


class Passed:
    """Knows which records are out, and so when a position may be committed. Of one member's assignments."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._assignment = 0
        self._out: dict[TopicPartition, int] = {}  # the offset behind the last record that was handed out

    def hand_out(self, batches: Mapping[TopicPartition, Sequence[Any]], *, assignment: int) -> None:
        """Note records that were read. Those of an earlier assignment come again."""
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
        """Return the positions that are not what is committed, though no record before them is out."""
        if self._out:
            return {}
        found = {}
        states = self._consumer._subscription.assignment  # noqa: SLF001 - asked in public, it may wait for a broker
        for place, state in states.items():
            # Behind what is committed it is only where that offset was not in the partition any more.
            at = state.committed.offset if state.committed else 0
            if state.has_valid_position and state.position != at:
                found[place] = OffsetAndMetadata(state.position, "")
        return found
