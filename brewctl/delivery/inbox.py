"""The idempotent consumer: each record's effect once, however often the record comes.

    poll ─► one transaction: dedup rows + effects ─► COMMIT ─► commit offsets ─► next poll
                     │ crash here: neither               │ crash here: redelivered, found in processed_events

Records that can't be read are acknowledged by the dead-letter topic before their offset moves.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import broker, database, events
from brewctl.delivery.broker import Consumer, Producer, Record, RefusedError, UnavailableError
from brewctl.delivery.database import Pool
from brewctl.errors import BrewError, UnreachableError
from brewctl.lifecycle import Backoff, run_together
from brewctl.sql import queries

logger = log.get(__name__)

_POLL_S = 0.2  # also the longest that a stop waits for an idle poll


@dataclass(frozen=True)
class Projection:
    """A downstream of the topic: a new one is an effect in queries.sql and one of these."""

    service: str
    consumer: str  # the consumer group, and the name in processed_events
    effect: str  # the query that reads `fresh`
    done: str  # how the last line calls its effects


@dataclass
class Tally:
    """What one consumer did since its start. processed = effects + skipped + dead + other events."""

    processed: int = 0
    effects: int = 0
    skipped: int = 0  # duplicates
    dead: int = 0


@dataclass
class _Batch:
    size: int
    readable: dict[int, events.Event] = field(default_factory=dict)
    dead: list[tuple[Record, str]] = field(default_factory=list)
    duplicates: int = 0


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
                    if backoff.pause():
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
        consumer = Consumer(self._settings, group=group, node=self._node, on_assigned=self._report_assignment)
        try:
            while not stop.is_set():
                records = consumer.poll(timeout_s=_POLL_S)
                if records and self._settle(_sort(records), stop):
                    if reason := consumer.commit(records):
                        logger.warning("commit_refused", reason=reason, hint="redelivered and skipped as duplicates")
                    backoff.reset()
        finally:
            consumer.close()

    def _report_assignment(self, partitions: list[int]) -> None:
        log.say(self._node, f"partitions assigned {partitions}")

    def _settle(self, batch: _Batch, stop: threading.Event) -> bool:
        """Bring the batch to where it belongs, for good; False only where a stop came before that."""
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

    def handle(self, records: Sequence[Record]) -> None:
        """Bring records to where they belong, in one try. Raises what psycopg raises, UnavailableError, BrewError."""
        self._apply(_sort(records))

    def _apply(self, batch: _Batch) -> None:
        """Dead letters first, once; then one transaction with the dedup rows and effects of the whole batch."""
        started = time.monotonic()
        if batch.dead:
            self._bury(batch.dead)
            self.tally.dead += len(batch.dead)
            batch.dead.clear()
        effects = 0
        if batch.readable:
            with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
                cursor.execute(queries["inbox"] + "\n" + queries[self._projection.effect], self._parameters(batch))
                effects = cursor.rowcount
        self.tally.processed += batch.size
        self.tally.effects += effects
        self.tally.skipped += len(batch.readable) - effects + batch.duplicates
        logger.info("consumed", records=batch.size, effects=effects, took_ms=round((time.monotonic() - started) * 1000))

    def _parameters(self, batch: _Batch) -> dict[str, object]:
        return {
            "consumer": self._projection.consumer,
            "node": self._node,
            "outbox_ids": list(batch.readable),
            "order_ids": [event.order.order_id for event in batch.readable.values()],
        }

    def _bury(self, dead: Sequence[tuple[Record, str]]) -> None:
        letters = [self._letter(record, reason) for record, reason in dead]
        outcomes = self._send_letters(letters)
        for letter, outcome in zip(letters, outcomes, strict=True):
            if isinstance(outcome, RefusedError):
                # Too large even compressed: its reason and its place are kept, the record itself is in the topic.
                omitted = [*letter.headers, ("dlq-omitted", f"value of {len(letter.value or b'')} bytes".encode())]
                (again,) = self._send_letters([replace(letter, value=None, headers=omitted)])
                if again is not None:
                    raise BrewError(f"kafka refused a dead letter: {again}", hint="its offset stays uncommitted")
        for record, reason in dead:
            logger.error("dead_letter", partition=record.partition, offset=record.offset, reason=reason)

    def _send_letters(self, letters: Sequence[Record]) -> list[RefusedError | UnavailableError | None]:
        if self._dead_letters is None:
            self._dead_letters = Producer(self._settings, node=self._node, compressed=True)
        outcomes = self._dead_letters.send(letters, timeout_s=self._settings.limits.publish_s)
        for outcome in outcomes:
            if isinstance(outcome, UnavailableError):
                self._dead_letters.abandon()
                self._dead_letters = None
                raise outcome
        return outcomes

    def _letter(self, record: Record, reason: str) -> Record:
        notes = {
            "dlq-reason": reason,
            "dlq-group": self._projection.consumer,
            "dlq-topic": record.topic,
            "dlq-partition": str(record.partition),
            "dlq-offset": str(record.offset),
        }
        headers = record.headers + [(name, value.encode()) for name, value in notes.items()]
        return Record(self._settings.dead_letter_topic, record.key, record.value, headers)


def _sort(records: Sequence[Record]) -> _Batch:
    """Tell readable events from dead letters and from other types; a repeat within the batch is a duplicate."""
    batch = _Batch(len(records))
    for record in records:
        try:
            event = events.read_record(record.value, record.headers)
        except events.UnreadableError as error:
            batch.dead.append((record, str(error)))
            continue
        if event is None:
            continue
        if event.outbox_id in batch.readable:
            batch.duplicates += 1
        else:
            batch.readable[event.outbox_id] = event
    return batch
