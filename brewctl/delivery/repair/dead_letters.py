"""Lists, redrives and drops dead letters.

    topic ──a group can't handle a record──► topic.dlq ──redrive──► topic: every group reads it, and deduplicates
                                                     └──drop

A letter stays in its topic; a row of dead_letters_settled says that it was redriven or dropped. So each letter is
redriven once, even if several commands ask for it. A crash between Kafka's acknowledgement and the commit sends it
twice.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from brewctl.config import Settings
from brewctl.delivery.broker import (
    ClockError,
    Place,
    Producer,
    Reader,
    Record,
    RefusedError,
    UnavailableError,
    UnsentError,
    forbidden,
    is_forbidden,
    open_reader,
)
from brewctl.delivery.database import Connection
from brewctl.delivery.inbox.dead_letter import Letter, open_producer, read
from brewctl.errors import BrewError, UnreachableError
from brewctl.sql import queries


@dataclass(frozen=True)
class Filter:
    """Which letters are meant. An empty field matches all."""

    group: str = ""
    reason: str = ""  # a part of the reason, case-insensitive
    key: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.group or self.reason or self.key)

    def matches(self, letter: Letter) -> bool:
        """Return whether a letter is meant."""
        return (
            (not self.group or letter.group == self.group)
            and self.reason.lower() in letter.reason.lower()
            and (not self.key or letter.key == self.key)
        )


@dataclass
class Settlement:
    """The result of settling letters."""

    done: list[Letter] = field(default_factory=list)
    before: list[Letter] = field(default_factory=list)  # another command had settled them already
    refused: list[tuple[Letter, str]] = field(default_factory=list)  # still open, with the reason


class DeadLetters:
    """The dead letters of a topic, for one command: it remembers which records it has sent."""

    def __init__(self, settings: Settings, connection: Connection, reader: Reader, since: datetime | None) -> None:
        self._settings = settings
        self._connection = connection
        self._reader = reader
        self._topic = settings.dead_letter_topic
        self._bounds = reader.bounds(self._topic, since_ms=None if since is None else int(since.timestamp() * 1000))
        self._producer: Producer | None = None
        self._sent: dict[tuple[object, ...], Place] = {}

    def find(self, wanted: Filter, *, settled: bool = False) -> Iterator[Letter]:
        """Yield the open letters that there were at the start, in order per partition; `settled`: settled ones too.

        Memory: one fetch of each partition. Raises UnreachableError.
        """
        for records in self._reader.read(self._topic, self._bounds):
            for letter in self._looked_up([read(record) for record in records]):
                if wanted.matches(letter) and (settled or not letter.outcome):
                    yield letter

    def get(self, partition: int, offset: int) -> Letter:
        """Return one letter. Raises BrewError where there is none at that place."""
        first, end = self._bounds.get(partition, (0, 0))
        if first <= offset < end:
            for records in self._reader.read(self._topic, {partition: (offset, offset + 1)}):
                (letter,) = self._looked_up([read(record) for record in records])
                return letter
        raise BrewError(f"no dead letter {partition}:{offset} in {self._topic}", hint="see `brewctl dlq list --all`")

    def drop(self, letters: Iterable[Letter]) -> Settlement:
        """Settle letters without sending them."""
        return self._settle(letters, "dropped", lambda _open: [None] * len(_open))

    def redrive(self, letters: Iterable[Letter]) -> Settlement:
        """Send the records to their topics again, each once, and settle the letters of acknowledged ones.

        Letters of the same record from several groups share one copy. Raises UnreachableError or BrewError where Kafka
        stops acknowledging, or this user may not write: letters of acknowledged records are settled, the others stay
        open.
        """
        return self._settle(letters, "redriven", self._send)

    def close(self) -> None:
        """Close the producer, if there is one."""
        if self._producer:
            self._producer.close()

    def _settle(
        self,
        letters: Iterable[Letter],
        outcome: str,
        act: Callable[[Sequence[Letter]], Sequence[Place | RefusedError | UnavailableError | None]],
    ) -> Settlement:
        settled = Settlement()
        for chunk in self._chunks(letters):
            with self._connection.transaction():
                # One command at a time: the next one finds the letters settled that this one sends.
                self._connection.execute(queries["lock_settlements"], {"topic": self._topic})
                looked_up = self._looked_up(chunk)
                settled.before += [letter for letter in looked_up if letter.outcome]
                still_open = [letter for letter in looked_up if not letter.outcome]
                results = list(zip(still_open, act(still_open), strict=True))
                done = [
                    replace(letter, outcome=outcome, new_place=result)
                    for letter, result in results
                    if result is None or isinstance(result, Place)
                ]
                self._connection.execute(queries["settle_letters"], {"outcome": outcome, **self._columns(done)})
            settled.done += done
            settled.refused += [(letter, str(result)) for letter, result in results if isinstance(result, RefusedError)]
            for letter, result in results:
                if isinstance(result, UnavailableError):
                    self._give_up(letter.died_at[0], result)
        return settled

    def _send(self, letters: Sequence[Letter]) -> Sequence[Place | RefusedError | UnavailableError]:
        (now_ms,) = self._connection.execute(queries["now_ms"]).fetchone() or (-1,)
        copies = {
            letter.original: Record(letter.died_at[0], letter.key, letter.value, letter.headers, timestamp_ms=now_ms)
            for letter in letters
            if letter.original not in self._sent and not letter.obstacle
        }
        if copies and self._producer is None:
            self._producer = open_producer(self._settings, node="brewctl")
        timeout_s = self._settings.limits.publish_s
        outcomes = self._producer.send(list(copies.values()), timeout_s=timeout_s) if self._producer and copies else []
        results = dict(zip(copies, outcomes, strict=True)) | self._sent
        self._sent |= {original: result for original, result in results.items() if isinstance(result, Place)}
        return [RefusedError(letter.obstacle) if letter.obstacle else results[letter.original] for letter in letters]

    def _give_up(self, topic: str, error: UnavailableError) -> None:
        if self._producer:
            self._producer.abandon()
            self._producer = None
        if is_forbidden(error):
            raise forbidden(self._settings, f"WRITE topic {topic}")
        if isinstance(error, ClockError):
            raise BrewError(f"kafka refused a copy: {error}", hint="synchronise the clocks of postgres and the brokers")
        if isinstance(error, UnsentError):
            raise BrewError(f"kafka does not have the topic: {error}", hint="run `brewctl topic create`")
        raise UnreachableError(f"kafka did not acknowledge all: {error}", hint="run it again: it sends only the rest")

    def _chunks(self, letters: Iterable[Letter]) -> Iterator[list[Letter]]:
        """Split letters into chunks for one send and one transaction each."""
        limits = self._settings.limits
        chunk: list[Letter] = []
        size = 0
        for letter in letters:
            size += len(letter.value or b"")
            if chunk and (size > limits.publish_bytes or len(chunk) == limits.publish_rows):
                yield chunk
                chunk, size = [], len(letter.value or b"")
            chunk.append(letter)
        if chunk:
            yield chunk

    def _looked_up(self, letters: Sequence[Letter]) -> list[Letter]:
        """Return the letters with their current outcomes."""
        outcomes: dict[tuple[int, int], tuple[str, Place | None]] = {
            (partition, offset): (outcome, None if new_offset is None else Place(new_partition, new_offset))
            for partition, offset, outcome, new_partition, new_offset in self._connection.execute(
                queries["settled_letters"], self._columns(letters)
            )
        }
        found = [(letter, outcomes.get((letter.partition, letter.offset), ("", None))) for letter in letters]
        return [replace(letter, outcome=outcome, new_place=place) for letter, (outcome, place) in found]

    def _columns(self, letters: Sequence[Letter]) -> dict[str, object]:
        places = [letter.new_place for letter in letters]
        return {
            "topic": self._topic,
            "partitions": [letter.partition for letter in letters],
            "offsets": [letter.offset for letter in letters],
            "written": [letter.written_at for letter in letters],
            "new_partitions": [place and place.partition for place in places],
            "new_offsets": [place and place.offset for place in places],
        }


@contextlib.contextmanager
def open_dead_letters(
    settings: Settings, connection: Connection, *, since: datetime | None = None
) -> Iterator[DeadLetters]:
    """The dead letters of the topic, or those written since a time, by the clocks of their writers.

    Raises UnreachableError; BrewError where there is no such topic.
    """
    with open_reader(settings) as reader:
        dead_letters = DeadLetters(settings, connection, reader, since)
        try:
            yield dead_letters
        finally:
            dead_letters.close()
