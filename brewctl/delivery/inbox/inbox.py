"""Applies batches of records: each event has its effect once, however often Kafka delivers its record.

    records ─► events ─► one transaction: dedup rows + effects
        │         └────► an event whose effect alone keeps failing is parked, and later events of its key behind it
        └────► unreadable records are written to the dead-letter topic

`consumption` reads the records and commits their offsets afterwards.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from brewctl import log, metrics
from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Record
from brewctl.delivery.database import BoundedConnection, NoAnswerError, Pool
from brewctl.delivery.database.lent_transaction import HeldTooLongError
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.inbox.batch import Batch, Identity, ReadEvent, Tally
from brewctl.delivery.inbox.batch_size import BatchSize
from brewctl.delivery.inbox.burial import Burial
from brewctl.delivery.inbox.effects import KeysParkedError, distinct, effect_of
from brewctl.delivery.inbox.failures import SLOW, FailingError, Failures, StoppedError, is_countable, reason_of
from brewctl.delivery.inbox.parking import Parking
from brewctl.delivery.inbox.waiting_events import Intake
from brewctl.delivery.presence import Work
from brewctl.delivery.schema import no_partition
from brewctl.probes import heartbeat

logger = log.get(__name__)


class Inbox:
    """Applies the batches of one consumer. Not for two threads at a time."""

    def __init__(self, settings: Settings, pool: Pool, downstream: Downstream, *, node: str) -> None:
        self._pool = pool
        self._downstream = downstream
        # A handler may run for as long as Kafka allows between two polls.
        self._loop = heartbeat.Loop("inbox", within_s=settings.limits.poll_interval_s)
        self._intake = Intake(downstream.group, node, most=settings.limits.waiting_events) if downstream.lanes else None
        self._effect = self._intake or effect_of(downstream, node=node, beat=self._loop.beat)
        self.on_taken: Callable[[], None] = lambda: None  # called once events wait for the lanes
        self._burial = Burial(settings, registry.kafka_group(settings, downstream), node=node)
        self._batch_size = BatchSize(settings.limits)
        self._parking = Parking(downstream.group)
        self._failures = Failures(downstream, most_in_a_row=settings.limits.failures_in_a_row)
        # The open transaction: its connection, how many events it has, and when it began.
        self._transaction: tuple[BoundedConnection, int, float] | None = None
        self._partitioned: list[int | None] | None = None  # the outbox ids that partitions were just made for
        self.trouble = ""  # why the batch is tried again
        self.overtaken = ""  # which records Kafka removed before the group read them
        self.tally = Tally()
        self._metrics = metrics.inbox(downstream.group)
        self.done = log.Sum(logger, "consumed")

    @property
    def group(self) -> str:
        """The downstream's group."""
        return self._downstream.group

    @property
    def stopped(self) -> str:
        """Return why the downstream has stopped taking new events; empty while it takes them."""
        return self._failures.trouble

    def work(self) -> Work:
        """Return the counts since the start, and what keeps the consumer from its work now."""
        tally = self.tally
        trouble = self._failures.trouble or self.trouble or self._batch_size.trouble or self.overtaken
        if self._intake:
            trouble = trouble or self._intake.trouble
        if self._transaction:
            _, events, began = self._transaction
            if (runs_s := time.monotonic() - began) > self._batch_size.target_s:
                trouble = f"its transaction of {events} event{'s' if events > 1 else ''} has run for {runs_s:.0f} s"
        return Work(tally.processed, tally.effects, tally.skipped, tally.dead + tally.parked, trouble)

    def handle(self, records: Sequence[Record]) -> None:
        """Apply records, retrying failed effects without a pause. Raises what `apply` raises otherwise."""
        batch = self.read(records)
        while True:
            try:
                return self.apply(batch)
            except StoppedError:
                raise
            except FailingError:
                continue

    def read(self, records: Sequence[Record]) -> Batch:
        """Make a batch of the records of one poll."""
        return Batch.of(records, self._downstream.decoder_of)

    def forget(self, batch: Batch) -> None:
        """Forget the failed tries of a batch whose partitions were revoked: their next owner counts its own."""
        self._failures.settled(batch.readable)

    def close(self) -> None:
        """Log the last counts, and close the connection to the dead-letter topic."""
        self.done.tell(at_once=True)
        self._burial.close()

    def rest(self) -> None:
        """Note that a poll returned no records."""
        self.done.tell()
        self._batch_size.trouble = ""

    def end_statement(self, *, within_s: float) -> None:
        """Make PostgreSQL cancel the statement that `apply` waits for in another thread, within `within_s` seconds."""
        if self._transaction:
            self._transaction[0].end_statement(within_s=within_s)

    def apply(self, batch: Batch) -> None:
        """Try a batch once: effects first, then dead letters. An event whose tries are used up is parked.

        Raises what psycopg raises, FailingError, Later, UnavailableError, BrewError: called again with the same batch,
        it continues where it failed. Returns early, with the batch unfinished, once the batch is given up.
        """
        started, before = time.monotonic(), replace(self.tally)
        self._loop.beat()
        self.tally.others += batch.others
        batch.others = 0
        try:
            try:
                self._commit_in_parts(batch)
            except FailingError:
                self._bury(batch)  # a failed effect does not delay dead letters
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
        """Write the dead letters to their topic. Those that Kafka did not acknowledge stay in the batch.

        Raises UnavailableError for them.
        """
        if batch.dead and not batch.given_up:
            before = len(batch.dead)
            self._loop.beat()
            try:
                self._burial.bury(batch.dead)
            finally:
                self.tally.dead += before - len(batch.dead)

    def _commit_in_parts(self, batch: Batch) -> None:
        """Commit dedup rows and effects: the whole batch in one transaction, or in several.

        A part that takes PostgreSQL too long, or in which an effect fails, is halved, down to one event. Later events
        of a failing event's key are left out of this try. Raises FailingError where events are to be tried again.
        """
        parts = [list(batch.readable)]
        if batch.reused:
            every = (event for _, event in batch.readable.values())
            parts = [[(event.outbox_id, event.id) for event in part] for part in distinct(every)][::-1]
        failing: dict[str, Exception] = {}  # keys, and the error of each
        while parts and not batch.given_up:
            part = parts.pop()
            if failing:
                part = [identity for identity in part if batch.readable[identity][1].key not in failing]
            if len(part) > (size := self._batch_size.size):
                parts += [part[size:], part[:size]]
            elif part:
                parts += self._try_part(part, batch, failing)
            if parts:
                batch.settle()
        if failing and not batch.given_up:
            several = "s" if len(failing) > 1 else ""
            first = next(iter(failing.values()))
            raise FailingError(f"{len(failing)} event{several} failed: {reason_of(first)}") from first

    def _try_part(self, part: list[Identity], batch: Batch, failing: dict[str, Exception]) -> list[list[Identity]]:
        """Try to commit a part. Return the parts of it that are to be tried next, the first one last."""
        try:
            effects, parked = self._commit_part([batch.readable[identity] for identity in part], batch.repeats)
        except Later:
            raise
        except Exception as error:
            if table := no_partition.table_of(error):
                return self._make_partitions(table, part, batch)
            if halves := self._halve(part, error, batch):
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
        self._count_committed(part, batch, effects=effects, parked=parked)
        return []

    def _count_committed(self, part: list[Identity], batch: Batch, *, effects: int, parked: int) -> None:
        """Count a committed part, and remove it from the batch."""
        if effects:
            self._failures.succeeded()
        self._partitioned = None
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

    def _make_partitions(self, table: str, part: list[Identity], batch: Batch) -> list[list[Identity]]:
        """Make the partitions that a part's rows lack, and return the part again, as `_try_part` does.

        An event for which no partition may be made becomes a dead letter: its outbox id is far from all others, or so
        old that its dedup row was dropped and it may have had its effect. Raises NoPartitionError where they can't be
        made now.
        """
        refused: dict[int, str] = {}
        with self._pool.connection() as connection:
            ids: list[int | None] = [None]  # the outbox itself, to which a handler adds events
            if table != "outbox":
                ids = [*no_partition.without(connection, [outbox_id for outbox_id, _ in part])]
            if ids == self._partitioned:
                self._partitioned = None
                raise no_partition.NoPartitionError(f"{table} has no partition, although it was made")
            for each in ids:
                if (why := no_partition.make(connection, table, each)) and each is not None:
                    refused[each] = why
        self._partitioned = ids
        for identity in part:
            if reason := refused.get(identity[0]):
                record, _ = batch.readable.pop(identity)
                batch.dead.append((record, reason))
                self.tally.duplicates += batch.repeats.pop(identity[0], 0)
        return [[identity for identity in part if identity in batch.readable]]

    def _park(self, read: ReadEvent, reason: str, *, tries: int) -> int:
        with self._pool.connection() as connection:
            parked = self._parking.park(connection, read, reason, attempts=tries)
        if parked:
            record, event = read
            place = f"{record.partition}@{record.offset}"
            logger.error("parked", key=event.key, record=place, reason=reason, hint="see `brewctl dlq list`")
        return parked

    def _halve(self, part: list[Identity], error: Exception, batch: Batch) -> list[list[Identity]]:
        """Return the halves of a part in which to try it again, the second one first; none where halving is no help."""
        slow = isinstance(error, (*SLOW, HeldTooLongError)) and not batch.given_up
        if isinstance(error, NoAnswerError):  # PostgreSQL is away, or slow behind a proxy that cancels no statement
            self._batch_size.halve(len(part))
        elif slow:
            self._batch_size.note_timeout(len(part), reason_of(error))
        if len(part) == 1 or not (slow or is_countable(error)):
            return []
        middle = (len(part) + 1) // 2
        return [part[middle:], part[:middle]]

    def _commit_part(self, part: Sequence[ReadEvent], repeats: Counter[int]) -> tuple[int, int]:
        """Commit dedup rows and effects in one transaction. Return how many events had an effect, and were parked."""
        fresh, parked = [event for _, event in part], 0
        with self._pool.connection() as connection:
            began = time.monotonic()
            self._transaction = connection, len(fresh), began
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
                self._transaction = None
        if not self._intake:
            self._metrics.delivered(fresh, effects)
        self._batch_size.note(len(part), time.monotonic() - began)
        return effects, parked
