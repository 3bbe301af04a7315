"""The idempotent consumer: each record's effect once, however often the record comes.

    records ─► one statement, one commit: dedup rows + effects
        └────► records that can't be read, and those whose effect PostgreSQL rejects for themselves alone,
               are acknowledged by the dead-letter topic

`consumption` reads the records, and commits their offsets afterwards.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import psycopg

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import dead_letters, events
from brewctl.delivery.broker import ClockError, Place, Producer, Record, RefusedError, UnavailableError
from brewctl.delivery.database import BoundedConnection, NoAnswerError, Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.effects import effect_of
from brewctl.delivery.events import Decoder, Event
from brewctl.delivery.pace import Pace
from brewctl.delivery.presence import Work
from brewctl.errors import BrewError

logger = log.get(__name__)

Identity = tuple[int, str | None]  # of an event: its outbox id and its event id

# Families of SQLSTATE beside data and integrity: cardinality (two rows where one may be), a view's check option,
# a program limit (a key too long for its index), and what a trigger raises.
_ROWS_FAULT = frozenset({"21", "44", "54", "P0"})
# The server is there, and has ended a statement, or its session, that took longer than its bound.
SLOW = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.TransactionTimeout,
)


@dataclass
class Tally:
    """What became of the records that one consumer has read since its start."""

    effects: int = 0
    duplicates: int = 0
    others: int = 0  # events of other types
    dead: int = 0

    @property
    def skipped(self) -> int:
        """Records that needed no effect of ours."""
        return self.duplicates + self.others

    @property
    def processed(self) -> int:
        """All records."""
        return self.effects + self.skipped + self.dead


@dataclass
class Batch:
    """What is still to be done with the records of one poll. A retry goes on where the try before it failed.

    The thread that reads may set `given_up`: no further transaction is begun. What is `settled` then needs no
    redelivery.
    """

    records: Sequence[Record] = ()
    readable: dict[Identity, tuple[Record, Event[Any]]] = field(default_factory=dict)
    dead: list[tuple[Record, str]] = field(default_factory=list)
    repeats: Counter[int] = field(default_factory=Counter)  # how often else each of `readable` is in it, by outbox id
    others: int = 0
    given_up: bool = False
    # Records whose offsets may be committed: of each partition, those before the first that is still to be done.
    settled: Sequence[Record] = ()

    @classmethod
    def of(cls, records: Sequence[Record], decoders: Mapping[bytes, Decoder]) -> Self:
        """Tell readable events from dead letters and from other types; a repeat within the batch is a duplicate."""
        batch = cls(records)
        read, readable = events.read, batch.readable
        event_ids: dict[int, str | None] = {}  # the first of each outbox id
        others: dict[int, set[str | None]] = {}  # of those that came with more than one
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
            if outbox_id in event_ids:
                first = event_ids[outbox_id]
                if event_id is None or first is None or event_id in others.setdefault(outbox_id, {first}):
                    batch.repeats[outbox_id] += 1
                    continue
                others[outbox_id].add(event_id)
            else:
                event_ids[outbox_id] = event_id
            readable[outbox_id, event_id] = (record, event)
        return batch

    def settle(self) -> None:
        """Note what is done so far."""
        undone: dict[tuple[str, int], int] = {}
        for record, _ in (*self.readable.values(), *self.dead):
            place = record.topic, record.partition
            undone[place] = min(record.offset, undone.get(place, record.offset))
        if undone:
            self.settled = [
                record
                for record in self.records
                if record.offset < undone.get((record.topic, record.partition), record.offset + 1)
            ]
        else:
            self.settled = self.records


class Inbox:
    """Brings records to where they belong, for one consumer. Not for two threads at a time."""

    def __init__(self, settings: Settings, pool: Pool, downstream: Downstream, *, node: str) -> None:
        self._settings = settings
        self._pool = pool
        self._downstream = downstream
        self._effect = effect_of(downstream, node=node)
        self._node = node
        self._dead_letters: Producer | None = None
        self._pace = Pace(settings.limits)
        self._asked: tuple[BoundedConnection, int, float] | None = None  # the transaction in hand: events, beginning
        self.trouble = ""  # why a batch has to be tried again
        self.tally = Tally()
        self.done = log.Sum(logger, "consumed")

    def work(self) -> Work:
        """Say what was done, and what is in the way, in the words of every role."""
        tally, trouble = self.tally, self.trouble or self._pace.trouble
        if asked := self._asked:
            _, events, began = asked
            if (runs_s := time.monotonic() - began) > self._pace.target_s:
                trouble = f"its transaction of {events} event{'s' if events > 1 else ''} has run for {runs_s:.0f} s"
        return Work(tally.processed, tally.effects, tally.skipped, tally.dead, trouble)

    def handle(self, records: Sequence[Record]) -> None:
        """Bring records to where they belong, in one try. Raises what `apply` raises."""
        self.apply(self.read(records))

    def read(self, records: Sequence[Record]) -> Batch:
        """Read the records of one poll."""
        return Batch.of(records, self._downstream.decoder_of)

    def close(self) -> None:
        """Let the connection to the dead-letter topic go."""
        self.done.tell(at_once=True)
        if self._dead_letters:
            self._dead_letters.close()

    def rest(self) -> None:
        """Take note that there is nothing to do."""
        self.done.tell()
        self._pace.trouble = ""

    def end_statement(self, *, within_s: float) -> None:
        """Have PostgreSQL end the statement of `apply`, which another thread waits for, within so many seconds."""
        if asked := self._asked:
            asked[0].end_statement(within_s=within_s)

    def apply(self, batch: Batch) -> None:
        """Effects first, then dead letters: what PostgreSQL rejects is one of them.

        Raises what psycopg raises, UnavailableError, BrewError: tried again, it goes on where it stopped. Returns
        with the batch unfinished where that is given up meanwhile.
        """
        started, before = time.monotonic(), replace(self.tally)
        self.tally.others += batch.others
        batch.others = 0
        try:
            self._write(batch)
            if batch.dead and not batch.given_up:
                self._bury(batch)
        finally:
            batch.settle()
        took_s = time.monotonic() - started
        self._pace.note_batch(took_s)
        self.done.add(
            records=self.tally.processed - before.processed,
            effects=self.tally.effects - before.effects,
            batches=1,
            took_ms=round(took_s * 1000),
        )

    def _write(self, batch: Batch) -> None:
        """Commit dedup rows and effects: all in one transaction, or parts of it.

        Parts where it is more than PostgreSQL does in time, or where a row is rejected: down to that row alone.
        """
        parts = _without_reused_ids(list(batch.readable))
        while parts and not batch.given_up:
            part = parts.pop()
            if len(part) > (size := self._pace.size):
                parts += [part[size:], part[:size]]
                continue
            try:
                effects = self._transact([batch.readable[identity][1] for identity in part], batch.repeats)
            except psycopg.Error as error:
                if halves := self._halves(part, error, batch):
                    parts += halves
                    continue
                if not _blames_a_row(error):
                    raise
                record, _ = batch.readable.pop(part[0])
                batch.dead.append((record, f"postgres rejected its effect: {_first_line(error)}"))
            else:
                for identity in part:
                    del batch.readable[identity]
                self.tally.effects += effects
                self.tally.duplicates += len(part) - effects
            self.tally.duplicates += sum(batch.repeats.pop(outbox_id, 0) for outbox_id, _ in part)
            if parts:
                batch.settle()

    def _halves(self, part: list[Identity], error: psycopg.Error, batch: Batch) -> list[list[Identity]]:
        """Say in which parts to try again what failed, the first one last; none where that would not help."""
        slow = isinstance(error, SLOW) and not batch.given_up
        if isinstance(error, NoAnswerError):  # it is away, or slow where nothing ends its statements
            self._pace.halve(len(part))
        elif slow:
            self._pace.note_timeout(len(part), _first_line(error))
        if len(part) == 1 or not (slow or _blames_a_row(error)):
            return []
        middle = (len(part) + 1) // 2
        return [part[middle:], part[:middle]]

    def _transact(self, fresh: Sequence[Event[Any]], repeats: Counter[int]) -> int:
        """Commit dedup rows and effects of these events, and return how many effects there were."""
        if not fresh:
            return 0
        with self._pool.connection() as connection:
            began = time.monotonic()
            self._asked = connection, len(fresh), began
            try:
                effects = self._effect(connection, fresh, repeats)
            finally:
                self._asked = None
        self._pace.note(len(fresh), time.monotonic() - began)
        return effects

    def _bury(self, batch: Batch) -> None:
        """Have dead letters acknowledged; those that are not stay in the batch. Raises UnavailableError for them."""
        if self._dead_letters is None:
            self._dead_letters = dead_letters.open_producer(self._settings, node=self._node)
        timeout_s = self._settings.limits.publish_s
        group, topic = self._downstream.group, self._settings.dead_letter_topic
        letters = [dead_letters.letter_for(record, reason, group=group, topic=topic) for record, reason in batch.dead]
        outcomes = self._dead_letters.send(letters, timeout_s=timeout_s)
        for position, letter in enumerate(letters):
            if isinstance(outcomes[position], ClockError):
                # This machine's clock is wrong: the record's own time was good enough for Kafka.
                record, _ = batch.dead[position]
                letters[position] = letter = replace(letter, timestamp_ms=record.timestamp_ms)  # noqa: PLW2901
                (outcomes[position],) = self._dead_letters.send([letter], timeout_s=timeout_s)
            if isinstance(outcomes[position], RefusedError):
                # Too large even compressed: its reason and its place are kept, the record itself is in the topic.
                bare = dead_letters.without_value(letter)
                (outcomes[position],) = self._dead_letters.send([bare], timeout_s=timeout_s)
        pairs = list(zip(batch.dead, outcomes, strict=True))
        buried = [dead for dead, outcome in pairs if isinstance(outcome, Place)]
        batch.dead = [dead for dead, outcome in pairs if not isinstance(outcome, Place)]
        self.tally.dead += len(buried)
        if buried:  # one line however many: a broken trigger rejects them all
            record, reason = buried[0]
            first = f"{record.partition}@{record.offset}"
            logger.error("dead_letter", count=len(buried), first=first, reason=reason, hint="see `brewctl dlq list`")
        for outcome in outcomes:
            if isinstance(outcome, UnavailableError):
                self._dead_letters.abandon()
                self._dead_letters = None
                raise outcome
            if isinstance(outcome, RefusedError):
                hint = "raise max.message.bytes of the dead-letter topic, if that is why; the offset stays uncommitted"
                raise BrewError(f"kafka refused a dead letter: {outcome}", hint=hint)


def _without_reused_ids(identities: list[Identity]) -> list[list[Identity]]:
    """Part events so that no part has two of one outbox id, the first part last: one of a restored database, say."""
    parts: list[list[Identity]] = []
    while identities:
        first: dict[int, Identity] = {}
        for identity in identities:
            first.setdefault(identity[0], identity)
        parts.insert(0, list(first.values()))
        identities = [identity for identity in identities if first[identity[0]] != identity]
    return parts


def _blames_a_row(error: psycopg.Error) -> bool:
    """Say whether PostgreSQL rejects the data of a row, not the statement, and is neither away nor overloaded."""
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
        return True
    if not error.sqlstate:
        return False
    family = error.sqlstate[:2]
    try:
        psycopg.errors.lookup(f"{family}000")
    except KeyError:
        return True  # no family of PostgreSQL's: a trigger's own RAISE … USING ERRCODE
    return family in _ROWS_FAULT


def _first_line(error: psycopg.Error) -> str:
    """PostgreSQL's main message; its details may name other rows."""
    return " ".join((error.diag.message_primary or str(error)).split())[:300]
