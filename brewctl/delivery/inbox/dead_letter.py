"""A dead letter: a record that a group can't handle, as it is in the dead-letter topic, with where and why it died."""

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
_LAST_MS = 253_402_300_799_999  # the end of the year 9999: any clock may have written a letter
_DIGITS = 18


def letter_for(record: Record, reason: str, *, group: str, topic: str) -> Record:
    """Make the dead letter of a record: key, value and headers as they were, then where and why it died."""
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
    """Open what sends letters, and redrives them: each for itself, whatever became of others of its key.

    Compressed, so that what once fitted does so still, with its notes. Raises what Producer raises.
    """
    return Producer(settings, node=node, ordered=False, compressed=True)


def without_value(letter: Record) -> Record:
    """Make a letter that is too large for its topic one that fits: the record itself is where it died."""
    omitted = (_OMITTED, f"value of {len(letter.value or b'')} bytes".encode())
    return letter._replace(value=None, headers=[*letter.headers, omitted])


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: the record that died, where and why, and what became of it."""

    partition: int  # of the letter, in the dead-letter topic
    offset: int
    written_at: datetime
    reason: str
    group: str
    died_at: tuple[str, int, int]  # topic, partition, offset
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)  # without the notes on its death
    omitted: str = ""  # what was too large to be kept
    outcome: str = ""  # redriven, dropped, or still open
    new_place: Place | None = None  # of a redriven one, in the topic that it had died in

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
        """What the letters of one record have in common."""
        # The place alone is not enough: a topic that is made anew gives it to another record.
        return (*self.died_at, hash((self.key, self.value, tuple(self.headers))))


def read(record: Record) -> Letter:
    """Read a letter; one that somebody else wrote lacks what its headers don't say."""
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
