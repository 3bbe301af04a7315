"""The records of one poll, sorted into readable events and dead letters, and how many records had which result.

`consumption` reads a batch, `inbox` applies it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.events import Decoder, Event

Identity = tuple[int, str | None]  # of an event: its outbox id and its event id
ReadEvent = tuple[Record, Event[Any]]  # an event, and the record that it was read from


@dataclass
class Tally:
    """How many records one consumer has processed since its start, by result."""

    effects: int = 0
    duplicates: int = 0
    others: int = 0  # events of other types
    dead: int = 0
    parked: int = 0
    waiting: int = 0  # taken for the lanes, which count their effects themselves

    @property
    def skipped(self) -> int:
        """Records that needed no effect of this downstream."""
        return self.duplicates + self.others

    @property
    def processed(self) -> int:
        """All records."""
        return self.effects + self.skipped + self.dead + self.parked + self.waiting


@dataclass
class Batch:
    """The records of one poll that are not processed yet. A retry continues where the try before it failed.

    The reading thread may set `given_up`: then no further transaction is begun.
    """

    records: Sequence[Record] = ()
    readable: dict[Identity, ReadEvent] = field(default_factory=dict)
    dead: list[tuple[Record, str]] = field(default_factory=list)  # unreadable records, and the reason of each
    repeats: Counter[int] = field(default_factory=Counter)  # further copies of each readable event, by outbox id
    others: int = 0
    reused: bool = False  # whether two events of `readable` have one outbox id
    given_up: bool = False
    # Records whose offsets may be committed: in each partition, those before the first unprocessed record.
    settled: Sequence[Record] = ()

    @classmethod
    def of(cls, records: Sequence[Record], decoders: Mapping[bytes, Decoder]) -> Self:
        """Sort records into readable events, dead letters, other types and repeats within the batch."""
        batch = cls(records)
        read, readable = events.read, batch.readable
        first_ids: dict[int, str | None] = {}  # the event id that each outbox id first came with
        all_ids: dict[int, set[str | None]] = {}  # all its event ids, where an outbox id came again
        for record in records:
            try:
                event = read(record.key, record.value, record.headers, record.timestamp_ms, decoders=decoders)
            except events.UnreadableError as error:
                batch.dead.append((record, str(error)))
                continue
            if event is None:
                batch.others += 1
                continue
            outbox_id, event_id = event.outbox_id, event.id
            if outbox_id in first_ids:
                first = first_ids[outbox_id]
                if event_id is None or first is None or event_id in all_ids.setdefault(outbox_id, {first}):
                    batch.repeats[outbox_id] += 1
                    continue
                all_ids[outbox_id].add(event_id)
                batch.reused = True
            else:
                first_ids[outbox_id] = event_id
            readable[outbox_id, event_id] = (record, event)
        return batch

    def settle(self) -> None:
        """Update `settled` from what is still to be processed."""
        undone: dict[tuple[str, int], int] = {}  # the first unprocessed offset of each partition
        for record, _ in (*self.readable.values(), *self.dead):
            partition = record.topic, record.partition
            undone[partition] = min(record.offset, undone.get(partition, record.offset))
        if undone:
            self.settled = [
                record
                for record in self.records
                if record.offset < undone.get((record.topic, record.partition), record.offset + 1)
            ]
        else:
            self.settled = self.records
