"""The idempotent consumer: each record's effect once, however often the record comes.

    poll ─► one transaction: dedup rows + effects ─► COMMIT ─► commit offsets ─► next poll
                     │ crash here: neither               │ crash here: redelivered, found in processed_events

Records that can't be read, and those whose effect PostgreSQL rejects for themselves alone, are acknowledged by
the dead-letter topic before their offset moves.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import psycopg

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import broker, database, dead_letters, events
from brewctl.delivery.broker import Consumer, Place, Producer, Record, RefusedError, UnavailableError
from brewctl.delivery.database import Pool
from brewctl.errors import BrewError, UnreachableError
from brewctl.lifecycle import Backoff, run_together
from brewctl.sql import queries

logger = log.get(__name__)

_POLL_S = 0.2  # also the longest that a stop waits for an idle poll
# Families of SQLSTATE beside data and integrity: cardinality (two rows where one may be), a view's check option,
# a program limit (a key too long for its index), and what a trigger raises.
_ROWS_FAULT = frozenset({"21", "44", "54", "P0"})


@dataclass(frozen=True)
class Projection:
    """A downstream of the topic: a new one is an effect in queries.sql and one of these."""

    service: str
    consumer: str  # the consumer group, and the name in processed_events
    effect: str  # the query that reads `fresh`
    done: str  # how the last line calls its effects


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
class _Batch:
    """What is still to be done with the records of one poll. A retry goes on where the try before it failed."""

    readable: dict[int, tuple[Record, events.Event]] = field(default_factory=dict)
    dead: list[tuple[Record, str]] = field(default_factory=list)
    duplicates: int = 0
    others: int = 0


def consume(settings: Settings, projection: Projection, stop: threading.Event, *, node: str) -> None:
    """Run a projection until `stop` is set, then print its counters.

    Raises UnreachableError where a server is away at the start, BrewError where a table or a topic is missing.
    """
    broker.require_topic(settings)
    with database.open_pool(settings, name=node, size=1) as pool, database.explained(settings):
        inbox = Inbox(settings, pool, projection, node=node)
        try:
            run_together({"consumer": lambda: inbox.run(stop)}, stop, drain_timeout_s=settings.limits.drain_s)
        finally:
            tally = inbox.tally
            counters = f"processed={tally.processed} {projection.done}={tally.effects} skipped={tally.skipped}"
            log.say(node, f"{projection.service} stopped. {counters}")


class Inbox:
    """Runs a projection as one member of its group."""

    def __init__(self, settings: Settings, pool: Pool, projection: Projection, *, node: str) -> None:
        self._settings = settings
        self._pool = pool
        self._projection = projection
        self._node = node
        self._dead_letters: Producer | None = None
        self.tally = Tally()

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set; the batch in hand is finished and committed first.

        Raises BrewError for what no retry mends; outages of either server are retried for ever.
        """
        backoff = Backoff(stop)
        try:
            while not stop.is_set():
                try:
                    self._consume_until(stop, backoff)
                except (UnavailableError, UnreachableError) as error:
                    if backoff.pause() and not stop.is_set():
                        logger.warning("kafka_unavailable", reason=str(error), hint="joins again")
        finally:
            if self._dead_letters:
                self._dead_letters.close()

    def _consume_until(self, stop: threading.Event, backoff: Backoff) -> None:
        """Be a member of the group until `stop`, or until a poll fails.

        A failed poll may have moved past records that it did not return: only a new member, which
        starts at the committed offsets, is sure to see them.
        """
        group = self._projection.consumer
        consumer = Consumer(self._settings, stop, group=group, node=self._node, on_assigned=self._report_assignment)
        try:
            while not stop.is_set():
                records = consumer.poll(timeout_s=_POLL_S)
                if records and self._settle(_sort(records), stop, consumer.keep_alive):
                    if reason := consumer.commit(records):
                        logger.warning("commit_refused", reason=reason, hint="redelivered and skipped as duplicates")
                    backoff.reset()
        finally:
            consumer.close()

    def _report_assignment(self, partitions: list[int]) -> None:
        log.say(self._node, f"partitions assigned {partitions}")

    def _settle(self, batch: _Batch, stop: threading.Event, keep_alive: Callable[[], bool]) -> bool:
        """Bring the batch to where it belongs, for good; False where a stop or a rebalance came before that.

        An outage leaves the group as it is: the member goes on polling between the tries.
        """
        backoff = Backoff(stop)
        while True:
            try:
                self._apply(batch)
            except database.UNAVAILABLE as error:
                retry, reason = "postgres_unavailable", str(error).strip()
            except (UnavailableError, UnreachableError) as error:
                retry, reason = "dead_letter_unacknowledged", str(error)
            else:
                return True
            if backoff.pause():
                logger.warning(retry, reason=reason, hint="the batch is kept and retried")
            if stop.is_set():
                return False
            if not keep_alive():
                logger.warning("batch_given_up", reason="partitions were assigned anew", hint="it is delivered again")
                return False

    def handle(self, records: Sequence[Record]) -> None:
        """Bring records to where they belong, in one try. Raises what psycopg raises, UnavailableError, BrewError."""
        self._apply(_sort(records))

    def _apply(self, batch: _Batch) -> None:
        """Effects first, then dead letters: what PostgreSQL rejects is one of them."""
        started, before = time.monotonic(), replace(self.tally)
        self._write(batch)
        if batch.dead:
            self._bury(batch)
        self.tally.duplicates += batch.duplicates
        self.tally.others += batch.others
        logger.info(
            "consumed",
            records=self.tally.processed - before.processed,
            effects=self.tally.effects - before.effects,
            took_ms=round((time.monotonic() - started) * 1000),
        )

    def _write(self, batch: _Batch) -> None:
        """Commit dedup rows and effects: all in one transaction, or halves of it until the rejected are alone."""
        parts = [list(batch.readable)]
        while parts:
            part = parts.pop()
            try:
                effects = self._transact([batch.readable[outbox_id][1] for outbox_id in part])
            except psycopg.Error as error:
                if not _blames_a_row(error):
                    raise
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                record, _ = batch.readable.pop(part[0])
                batch.dead.append((record, f"postgres rejected its effect: {_first_line(error)}"))
            else:
                for outbox_id in part:
                    del batch.readable[outbox_id]
                self.tally.effects += effects
                self.tally.duplicates += len(part) - effects

    def _transact(self, fresh: Sequence[events.Event]) -> int:
        """Commit dedup rows and effects of these events, and return how many effects there were."""
        if not fresh:
            return 0
        parameters = {
            "consumer": self._projection.consumer,
            "node": self._node,
            "outbox_ids": [event.outbox_id for event in fresh],
            "order_ids": [event.order.order_id for event in fresh],
        }
        with self._pool.connection() as connection, connection.transaction():
            return connection.execute(queries["inbox"] + "\n" + queries[self._projection.effect], parameters).rowcount

    def _bury(self, batch: _Batch) -> None:
        """Have dead letters acknowledged; those that are not stay in the batch. Raises UnavailableError for them."""
        if self._dead_letters is None:
            self._dead_letters = Producer(self._settings, node=self._node, compressed=True)
        timeout_s = self._settings.limits.publish_s
        group, topic = self._projection.consumer, self._settings.dead_letter_topic
        letters = [dead_letters.letter_for(record, reason, group=group, topic=topic) for record, reason in batch.dead]
        outcomes = self._dead_letters.send(letters, timeout_s=timeout_s)
        for position, letter in enumerate(letters):
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
                raise BrewError(f"kafka refused a dead letter: {outcome}", hint="its offset stays uncommitted")


def _sort(records: Sequence[Record]) -> _Batch:
    """Tell readable events from dead letters and from other types; a repeat within the batch is a duplicate."""
    batch = _Batch()
    for record in records:
        try:
            event = events.read_record(record.value, record.headers)
        except events.UnreadableError as error:
            batch.dead.append((record, str(error)))
            continue
        if event is None:
            batch.others += 1
        elif event.outbox_id in batch.readable:
            batch.duplicates += 1
        else:
            batch.readable[event.outbox_id] = (record, event)
    return batch


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
