"""The idempotent consumer: each record's effect once, however often the record comes.

    records ─► events ─► one transaction: dedup rows + effects
        │         └────► those whose effect fails for themselves alone are parked, and later ones of their keys
        └────► records that can't be read are acknowledged by the dead-letter topic

`consumption` reads the records, and commits their offsets afterwards.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import psycopg

from brewctl import log, metrics
from brewctl.config import Settings
from brewctl.delivery import events, registry
from brewctl.delivery.broker import Record
from brewctl.delivery.database import UNAVAILABLE, BoundedConnection, NoAnswerError, Pool
from brewctl.delivery.database.lent_transaction import HeldTooLongError
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.events import Decoder, Event
from brewctl.delivery.inbox.batch_size import BatchSize
from brewctl.delivery.inbox.burial import Burial
from brewctl.delivery.inbox.effects import KeysParkedError, distinct, effect_of
from brewctl.delivery.inbox.failures import FailingError, Failures, Identity, StoppedError, blames_a_row, reason_of
from brewctl.delivery.inbox.parking import Parking, Read
from brewctl.delivery.inbox.waiting_events import Intake
from brewctl.delivery.presence import Work
from brewctl.delivery.schema import no_partition
from brewctl.probes import heartbeat

logger = log.get(__name__)

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
    parked: int = 0
    waiting: int = 0  # for the lanes, where there are some: their effects are counted there

    @property
    def skipped(self) -> int:
        """Records that needed no effect of ours."""
        return self.duplicates + self.others

    @property
    def processed(self) -> int:
        """All records."""
        return self.effects + self.skipped + self.dead + self.parked + self.waiting


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
    reused: bool = False  # whether two of `readable` have one outbox id
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
                batch.reused = True
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
        self._pool = pool
        self._downstream = downstream
        # A handler may take as long as Kafka lets a member.
        self._loop = heartbeat.Loop("inbox", within_s=settings.limits.poll_interval_s)
        self._intake = Intake(downstream.group, node, most=settings.limits.waiting_events) if downstream.lanes else None
        self._effect = self._intake or effect_of(downstream, node=node, beat=self._loop.beat)
        self.on_taken: Callable[[], None] = lambda: None  # called after events were taken for the lanes
        self._burial = Burial(settings, registry.kafka_group(settings, downstream), node=node)
        self._batch_size = BatchSize(settings.limits)
        self._parking = Parking(downstream.group)
        self._failures = Failures(downstream, most_in_a_row=settings.limits.failures_in_a_row)
        self._asked: tuple[BoundedConnection, int, float] | None = None  # the transaction in hand: events, beginning
        self._had_room: list[int | None] | None = None  # ids that partitions were just made for
        self.trouble = ""  # why a batch has to be tried again
        self.overtaken = ""  # which records were gone before the group read them
        self.tally = Tally()
        self._metrics = metrics.inbox(downstream.group)
        self.done = log.Sum(logger, "consumed")

    @property
    def group(self) -> str:
        """Whose effects these are."""
        return self._downstream.group

    @property
    def stopped(self) -> str:
        """Say why the downstream takes no new events, where it has stopped."""
        return self._failures.trouble

    def work(self) -> Work:
        """Say what was done, and what is in the way, in the words of every role."""
        tally = self.tally
        trouble = self._failures.trouble or self.trouble or self._batch_size.trouble or self.overtaken
        if self._intake:
            trouble = trouble or self._intake.trouble
        if asked := self._asked:
            _, events, began = asked
            if (runs_s := time.monotonic() - began) > self._batch_size.target_s:
                trouble = f"its transaction of {events} event{'s' if events > 1 else ''} has run for {runs_s:.0f} s"
        return Work(tally.processed, tally.effects, tally.skipped, tally.dead + tally.parked, trouble)

    def handle(self, records: Sequence[Record]) -> None:
        """Bring records to where they belong, with no pause between tries. Raises what `apply` raises at the last."""
        batch = self.read(records)
        while True:
            try:
                return self.apply(batch)
            except StoppedError:
                raise
            except FailingError:
                continue

    def read(self, records: Sequence[Record]) -> Batch:
        """Read the records of one poll."""
        return Batch.of(records, self._downstream.decoder_of)

    def forget(self, batch: Batch) -> None:
        """Forget the failed tries of a batch whose partitions have left: whoever has them then counts anew."""
        self._failures.settled(batch.readable)

    def close(self) -> None:
        """Let the connection to the dead-letter topic go."""
        self.done.tell(at_once=True)
        self._burial.close()

    def rest(self) -> None:
        """Take note that there is nothing to do."""
        self.done.tell()
        self._batch_size.trouble = ""

    def end_statement(self, *, within_s: float) -> None:
        """Have PostgreSQL end the statement of `apply`, which another thread waits for, within so many seconds."""
        if asked := self._asked:
            asked[0].end_statement(within_s=within_s)

    def apply(self, batch: Batch) -> None:
        """Effects first, then dead letters. An event whose effect failed often enough is parked.

        Raises what psycopg raises, FailingError, Later, UnavailableError, BrewError: tried again, it goes on where it
        stopped. Returns with the batch unfinished where that is given up meanwhile.
        """
        started, before = time.monotonic(), replace(self.tally)
        self._loop.beat()
        self.tally.others += batch.others
        batch.others = 0
        try:
            try:
                self._write(batch)
            except FailingError:
                self._bury(batch)  # they wait for nobody
                raise
            self._bury(batch)
        finally:
            batch.settle()
            self._loop.rest()
            self._metrics.records(before, self.tally)
        took_s = time.monotonic() - started
        self._batch_size.note_batch(took_s)
        self._metrics.batch(took_s)
        self.done.add(
            records=self.tally.processed - before.processed,
            effects=self.tally.effects - before.effects,
            batches=1,
            took_ms=round(took_s * 1000),
        )

    def _bury(self, batch: Batch) -> None:
        """Have dead letters acknowledged; those that are not stay in the batch. Raises UnavailableError for them."""
        if batch.dead and not batch.given_up:
            before = len(batch.dead)
            self._loop.beat()
            try:
                self._burial.bury(batch.dead)
            finally:
                self.tally.dead += before - len(batch.dead)

    def _write(self, batch: Batch) -> None:
        """Commit dedup rows and effects: all in one transaction, or parts of it.

        Parts where it is more than PostgreSQL does in time, or where an effect fails: down to that event alone. Later
        events of its key wait behind it. Raises FailingError where some are to be tried again.
        """
        parts = [list(batch.readable)]
        if batch.reused:
            every = (event for _, event in batch.readable.values())
            parts = [[(event.outbox_id, event.id) for event in part] for part in distinct(every)][::-1]
        failing: dict[str, Exception] = {}  # keys, and why
        while parts and not batch.given_up:
            part = parts.pop()
            if failing:
                part = [identity for identity in part if batch.readable[identity][1].key not in failing]
            if len(part) > (size := self._batch_size.size):
                parts += [part[size:], part[:size]]
            elif part:
                parts += self._attempt(part, batch, failing)
            if parts:
                batch.settle()
        if failing and not batch.given_up:
            several = "s" if len(failing) > 1 else ""
            first = next(iter(failing.values()))
            raise FailingError(f"{len(failing)} event{several} failed: {reason_of(first)}") from first

    def _attempt(self, part: list[Identity], batch: Batch, failing: dict[str, Exception]) -> list[list[Identity]]:
        """Try a part; return parts of it that are to be tried next, the first one last."""
        try:
            effects, parked = self._transact([batch.readable[identity] for identity in part], batch.repeats)
        except Later:
            raise
        except Exception as error:
            if table := no_partition.table_of(error):
                return self._make_room(table, part, batch)
            if halves := self._halves(part, error, batch):
                return halves
            if not is_countable(error):
                raise
            identity, read = part[0], batch.readable[part[0]]
            logger.debug("effect_failed", outbox_id=identity[0], exc_info=error)
            tries = self._failures.failed(identity, error)
            if tries is None:
                failing[read[1].key] = error
                return []
            effects, parked = 0, self._park(read, reason_of(error), tries=tries)
        self._count(part, batch, effects=effects, parked=parked)
        return []

    def _count(self, part: list[Identity], batch: Batch, *, effects: int, parked: int) -> None:
        """Count what became of a part that is committed."""
        if effects:
            self._failures.succeeded()
        self._had_room = None
        for identity in part:
            del batch.readable[identity]
        self._failures.settled(part)
        if self._intake:
            self.tally.waiting += effects
            self.on_taken()
        else:
            self.tally.effects += effects
        self.tally.parked += parked
        if batch.repeats:
            self.tally.duplicates += sum(batch.repeats.pop(outbox_id, 0) for outbox_id, _ in part)
        self.tally.duplicates += len(part) - effects - parked

    def _make_room(self, table: str, part: list[Identity], batch: Batch) -> list[list[Identity]]:
        """Make the partitions that rows of a part lack, and return what is to be tried again.

        An event that none is made for is a dead letter: its id is far from all others, or it is so old that its dedup
        row was dropped, and it may have had its effect. Raises NoPartitionError where they can't be made now.
        """
        refused: dict[int, str] = {}
        with self._pool.connection() as connection:
            ids: list[int | None] = [None]  # a handler adds events to the outbox
            if table != "outbox":
                ids = [*no_partition.without(connection, [outbox_id for outbox_id, _ in part])]
            if ids == self._had_room:
                self._had_room = None
                raise no_partition.NoPartitionError(f"{table} has no partition, although it was made")
            for each in ids:
                if (why := no_partition.make(connection, table, each)) and each is not None:
                    refused[each] = why
        self._had_room = ids
        for identity in part:
            if reason := refused.get(identity[0]):
                record, _ = batch.readable.pop(identity)
                batch.dead.append((record, reason))
                self.tally.duplicates += batch.repeats.pop(identity[0], 0)
        return [[identity for identity in part if identity in batch.readable]]

    def _park(self, read: Read, reason: str, *, tries: int) -> int:
        with self._pool.connection() as connection:
            parked = self._parking.park(connection, read, reason, attempts=tries)
        if parked:
            record, event = read
            place = f"{record.partition}@{record.offset}"
            logger.error("parked", key=event.key, record=place, reason=reason, hint="see `brewctl dlq list`")
        return parked

    def _halves(self, part: list[Identity], error: Exception, batch: Batch) -> list[list[Identity]]:
        """Say in which parts to try again what failed, the first one last; none where that would not help."""
        slow = isinstance(error, (*SLOW, HeldTooLongError)) and not batch.given_up
        if isinstance(error, NoAnswerError):  # it is away, or slow where nothing ends its statements
            self._batch_size.halve(len(part))
        elif slow:
            self._batch_size.note_timeout(len(part), reason_of(error))
        if len(part) == 1 or not (slow or is_countable(error)):
            return []
        middle = (len(part) + 1) // 2
        return [part[middle:], part[:middle]]

    def _transact(self, part: Sequence[Read], repeats: Counter[int]) -> tuple[int, int]:
        """Commit dedup rows and effects of these events; return how many effects there were, and how many it parked."""
        fresh, parked = [event for _, event in part], 0
        with self._pool.connection() as connection:
            began = time.monotonic()
            self._asked = connection, len(fresh), began
            self._loop.beat()
            try:
                if self._intake:
                    self._intake.expect(connection, part)
                effects = None
                if not self._parking.used:
                    try:
                        effects = self._effect(connection, fresh, repeats)
                    except KeysParkedError:
                        self._parking.used = True
                if effects is None:
                    with connection.transaction():
                        fresh, parked = self._parking.park_behind(connection, part)
                        effects = self._effect(connection, fresh, repeats, looked=True) if fresh else 0
            finally:
                self._asked = None
        if not self._intake:
            self._metrics.delivered(fresh, effects)
        self._batch_size.note(len(part), time.monotonic() - began)
        return effects, parked


def is_countable(error: Exception) -> bool:
    """Say whether a failed try counts, as the event's fault or as that of all: nothing is away, nothing was slow."""
    if isinstance(error, psycopg.Error) and blames_a_row(error):
        return True  # psycopg calls some of those operational
    return not isinstance(error, (*SLOW, *UNAVAILABLE))
