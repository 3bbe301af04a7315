"""Count dead letters: each is read once; as long as it is open, PostgreSQL is asked whether it was settled."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.broker import Reader, Record, open_reader
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.inbox import dead_letter
from brewctl.exporter import kafka, postgres
from brewctl.exporter.families import DEAD_LETTERS, Sample
from brewctl.exporter.questions import Question
from brewctl.sql import queries

QUESTION = (kafka.SERVER, "dead_letters")
STATES = ("open", "redriven", "dropped")
# Any client that writes dead letters can name any group: so many groups get series, the rest are one series.
_MOST_GROUPS = 100
_OTHERS = "other"


class _Place(NamedTuple):
    partition: int
    offset: int


class _Open(NamedTuple):
    group: str
    written_at: datetime


class LetterCounter:
    """Counts the open, redriven and dropped dead letters of each group."""

    def __init__(self, settings: Settings, groups: Sequence[str], *, within_s: float) -> None:
        """Make a counter. A look reads for `within_s` seconds at most: a long topic takes several looks at first."""
        self._settings = settings
        self._topic = settings.dead_letter_topic
        self._within_s = within_s
        self._groups = dict.fromkeys(groups)
        self._forget()

    def _forget(self) -> None:
        self._next: dict[int, int] = {}  # the offset to read next, by partition
        self._open: dict[_Place, _Open] = {}
        self._settled: Counter[tuple[str, str]] = Counter()  # by group and outcome

    def look(self, reader: Reader, connection: BoundedConnection) -> Sequence[Sample] | None:
        """Read the new letters, and count; None until the whole topic was read once."""
        bounds = reader.bounds(self._topic)
        if any(end < self._next.get(partition, 0) for partition, (_, end) in bounds.items()):
            self._forget()  # the topic was recreated
        self._open = {
            place: letter for place, letter in self._open.items() if place.offset >= bounds[place.partition][0]
        }
        all_read = self._read(reader, bounds)
        if self._open:
            postgres.bounded(self._settings, connection, self._settle)
        if not all_read:
            return None
        found = Counter(letter.group for letter in self._open.values())
        groups = dict.fromkeys([*self._groups, *found, *(group for group, _ in self._settled)])
        return [
            Sample(DEAD_LETTERS, found[group] if state == "open" else self._settled[group, state], (group, state))
            for group in groups
            for state in STATES
        ]

    def _read(self, reader: Reader, bounds: dict[int, tuple[int, int]]) -> bool:
        ranges = {
            partition: (max(first, self._next.get(partition, 0)), end)
            for partition, (first, end) in bounds.items()
            if max(first, self._next.get(partition, 0)) < end
        }
        until = time.monotonic() + self._within_s
        for records in reader.read(self._topic, ranges):
            for record in records:
                self._note(record)
            if time.monotonic() > until:
                return False
        self._next = {partition: end for partition, (_, end) in bounds.items()}
        return True

    def _note(self, record: Record) -> None:
        letter = dead_letter.read(record)
        group = letter.group if letter.group in self._groups or len(self._groups) < _MOST_GROUPS else _OTHERS
        self._groups.setdefault(group)
        self._open[_Place(letter.partition, letter.offset)] = _Open(group, letter.written_at)
        self._next[letter.partition] = letter.offset + 1

    def _settle(self, connection: BoundedConnection) -> Sequence[Sample]:
        asked = {
            "topic": self._topic,
            "partitions": [place.partition for place in self._open],
            "offsets": [place.offset for place in self._open],
            "written": [letter.written_at for letter in self._open.values()],
        }
        for partition, offset, outcome, *_ in connection.execute(queries["settled_letters"], asked).fetchall():
            letter = self._open.pop(_Place(partition, offset))
            self._settled[letter.group, outcome] += 1
        return []


def opener(
    settings: Settings, *, within_s: float
) -> Callable[[], contextlib.AbstractContextManager[Sequence[Question]]]:
    """Return a context manager that connects to both servers and yields the question for dead letters."""
    groups = registry.kafka_groups(settings)
    # The counts outlive a connection, so that letters are not read again after an outage.
    letters = LetterCounter(settings, groups, within_s=within_s)

    @contextlib.contextmanager
    def opened() -> Iterator[Sequence[Question]]:
        limits = replace(settings.limits, kafka_request_s=kafka.READ_S)
        with (
            database.connect(settings, name=postgres.NAME) as connection,
            open_reader(replace(settings, limits=limits)) as reader,
        ):
            yield [Question(*QUESTION, lambda: letters.look(reader, connection))]

    return opened
