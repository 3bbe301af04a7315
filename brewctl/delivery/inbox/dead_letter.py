"""The format of a dead letter: a record that a group can't read, with headers that say where and why.

`burial` writes dead letters, and `repair.dead_letters` reads them.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from brewctl.config import Settings
from brewctl.delivery.broker import Place, Producer, Record
from brewctl.delivery.events import Headers

_REASON, _GROUP, _TOPIC, _PARTITION, _OFFSET = (
    f"dlq-{name}" for name in ("reason", "group", "topic", "partition", "offset")
)
_OMITTED = "dlq-omitted"
_NOTES = frozenset({_REASON, _GROUP, _TOPIC, _PARTITION, _OFFSET, _OMITTED})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_300_799_999  # the end of the year 9999: a letter's timestamp may come from a wrong clock
_DIGITS = 18


def letter_for(record: Record, reason: str, *, group: str, topic: str) -> Record:
    """Make the dead letter of a record: its key, value and headers, then headers that say where and why it died."""
    notes = {
        _REASON: reason,
        _GROUP: group,
        _TOPIC: record.topic,
        _PARTITION: str(record.partition),
        _OFFSET: str(record.offset),
    }
    return Record(
        topic, record.key, record.value, record.headers + [(name, text.encode()) for name, text in notes.items()]
    )


def open_producer(settings: Settings, *, node: str) -> Producer:
    """Open the producer that writes and redrives letters: one that fails holds up no other of its key.

    It compresses, so that a record that once fitted still fits with the headers added. Raises what Producer raises.
    """
    return Producer(settings, node=node, ordered=False, compressed=True)


def without_value(letter: Record) -> Record:
    """Return a letter without its value, for one too large for its topic: the record is still where it died."""
    omitted = (_OMITTED, f"value of {len(letter.value or b'')} bytes".encode())
    return letter._replace(value=None, headers=[*letter.headers, omitted])


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: the record that died, where and why, and whether it was redriven or dropped."""

    partition: int  # of the letter, in the dead-letter topic
    offset: int
    written_at: datetime
    reason: str
    group: str
    died_at: tuple[str, int, int]  # topic, partition, offset
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)  # the record's own, without the dlq- headers
    omitted: str = ""  # the part that was too large to be kept
    outcome: str = ""  # redriven, dropped, or "": still open
    new_place: Place | None = None  # where a redriven one is now, in the topic that it died in

    @property
    def id(self) -> str:
        """Its name in commands."""
        return f"{self.partition}:{self.offset}"

    @property
    def obstacle(self) -> str:
        """Why it can't be redriven; empty where it can."""
        topic, partition, offset = self.died_at
        if self.omitted:
            return f"its {self.omitted} was not kept: it is at {topic} {partition}@{offset}, while that is retained"
        return "" if topic and partition >= 0 and offset >= 0 else "it does not say where it died"

    @property
    def original(self) -> tuple[object, ...]:
        """An identity that all letters of one record share."""
        # Topic, partition and offset are not enough: a topic that is made anew gives them to another record.
        return (*self.died_at, hash((self.key, self.value, tuple(self.headers))))


def read(record: Record) -> Letter:
    """Read a letter. A header that is missing, as another program may have written it, leaves its field empty."""
    notes = {name: value.decode(errors="replace") for name, value in record.headers if name in _NOTES}
    return Letter(
        partition=record.partition,
        offset=record.offset,
        written_at=_EPOCH + timedelta(milliseconds=min(max(record.timestamp_ms, 0), _LAST_MS)),
        reason=notes.get(_REASON, ""),
        group=notes.get(_GROUP, ""),
        died_at=(notes.get(_TOPIC, ""), _number(notes.get(_PARTITION, "")), _number(notes.get(_OFFSET, ""))),
        key=record.key,
        value=record.value,
        headers=[(name, value) for name, value in record.headers if name not in _NOTES],
        omitted=notes.get(_OMITTED, ""),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= _DIGITS else -1
