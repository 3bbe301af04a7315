"""The outbox publisher: committed rows → Kafka, at least once, in order per aggregate.

    fetch heads FOR UPDATE SKIP LOCKED ─► send, await each acknowledgement ─► mark ─► COMMIT
                    │                                 │ crash here
                    └── other publishers skip         └── the next publisher sends the rows again: consumers deduplicate

Any number of publishers run side by side. One of them has the publishing lease while it is enough, which saves
transactions; no row is lost or sent twice where two believe to have it. During a Kafka outage the publisher waits
outside transactions.
"""

import random
import threading
import time
from collections.abc import Mapping, Sequence

import psycopg

from brewctl import log, metrics
from brewctl.config import Settings
from brewctl.delivery import broker
from brewctl.delivery.broker import (
    ClockError,
    HeldError,
    Outcome,
    Place,
    Producer,
    RefusedError,
    UnavailableError,
    UnsentError,
)
from brewctl.delivery.broker.traced_producer import traced
from brewctl.delivery.crowding import Crowding
from brewctl.delivery.database import Pool
from brewctl.delivery.database.short_transaction import ShortTransaction
from brewctl.delivery.outbox.lead import Lead
from brewctl.delivery.outbox.records import records_of
from brewctl.delivery.outbox.scan import Scan
from brewctl.delivery.presence import Work
from brewctl.delivery.rest import Rest
from brewctl.delivery.schema import no_partition
from brewctl.errors import BrewError
from brewctl.lifecycle import Backoff
from brewctl.metrics import PublishFailure
from brewctl.probes import heartbeat
from brewctl.sql import queries

logger = log.get(__name__)

# The longest pause before rows of a missing topic are tried again: each try delays its batch.
_LONGEST_ABSENCE_S = 30.0
_IDS_BETWEEN_LOOKS = 1000  # between two checks for the next partition: a partition has at least a thousand ids


class Publisher:
    """Publishes outbox rows to Kafka for one node, until it is stopped."""

    def __init__(self, settings: Settings, pool: Pool, *, node: str, polls: bool = False) -> None:
        """`polls`: no code in this process calls `notify` after a commit, so the outbox is polled more often."""
        self._settings = settings
        self._polls = polls
        self._pool = pool
        self._node = node
        self._wake = threading.Event()
        self._lead = Lead(settings.limits, pool, node=node)
        self._rest = Rest(crowding=Crowding().share)
        self._rows = settings.limits.publish_rows_first  # of the next transaction
        self._scan = Scan()
        self._more = False  # whether there may be more rows to take now
        self._expects = True  # whether the next fetch probably finds rows
        self._done = log.Sum(logger, "published")
        self._absent: dict[str, tuple[Backoff, float]] = {}  # missing topics, and until when their rows are left alone
        self._partitions: dict[str, int] = {}  # the number of each topic's, as last seen
        self._published = 0
        self._set_aside = 0
        self._thousand: int | None = None  # the last id // _IDS_BETWEEN_LOOKS
        self._metrics = metrics.outbox()
        self._loop = heartbeat.Loop("publisher", within_s=settings.limits.longest_turn_s)
        self.trouble = ""  # why the last try failed

    def notify(self) -> None:
        """End a pause at once, because a row was committed or the publisher must stop. Thread-safe."""
        self._wake.set()

    def work(self) -> Work:
        """Return how many rows were published and set aside since the start."""
        return Work(processed=self._published + self._set_aside, effects=self._published, dead=self._set_aside)

    def run(self, stop: threading.Event) -> None:
        """Publish until `stop` is set, then the rows that still wait. Outages are retried without end."""
        with self._loop:
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        limits = self._settings.limits
        backoff = Backoff(stop)
        while not stop.is_set():
            self._loop.beat()
            try:
                producer = traced(Producer(self._settings, node=self._node, seen=self._partitions))
            except BrewError as error:
                self._failed(PublishFailure.KAFKA, f"kafka is away: {error.message}")
                if backoff.pause():
                    logger.warning("kafka_unreachable", reason=error.message, hint="orders are accepted and wait")
                continue
            try:
                self._publish_until(stop, producer, backoff)
                self._publish_rest(producer, within_s=limits.drain_s / 4)
                self._done.tell(at_once=True)
                producer.close()
            except (UnavailableError, psycopg.Error) as error:
                # No record of this producer may arrive after the next try of the same rows.
                producer.abandon()
                self._lead.forget()
                is_kafka = isinstance(error, UnavailableError)
                said = f"{'kafka' if is_kafka else 'postgres'} took no rows: {log.reason(error)}"
                self._failed(PublishFailure.KAFKA if is_kafka else PublishFailure.POSTGRES, said)
                if backoff.pause():
                    reason = str(error).strip()
                    if isinstance(error, UnavailableError):
                        reason = broker.reason(self._settings, error)
                    logger.warning("publish_failed", reason=reason, hint="the rows stay and are retried")

    def _failed(self, failure: PublishFailure, trouble: str) -> None:
        self.trouble = trouble
        self._metrics.failed(failure)

    def _publish_until(self, stop: threading.Event, producer: Producer, backoff: Backoff) -> None:
        limits = self._settings.limits
        idle_s = limits.publish_again_s
        gap_s = 0.0  # the pause between two fetches while this node has the lease
        found = 0
        while not stop.is_set():
            self._loop.beat()
            if (others_s := self._lead.others_s()) > 0:
                stop.wait(others_s)
                continue
            # Without a commit of this process a fetch mostly finds no row: then ask first whether there is any.
            self._expects = self._wake.is_set() or self._more or bool(self._polls and found)
            self._wake.clear()
            began = time.monotonic()
            # A fetch without rows is no success: another publisher may hold the rows and fail.
            if found := self.publish_batch(producer):
                backoff.reset()
            self.trouble = ""
            took_s = time.monotonic() - began
            if self._more and not self._wake.is_set():
                continue  # no commit of this process waits for the processor
            if found and not self._more:
                self._rest.worked(took_s, count=found)
                gap_s = max(took_s, self._rest.last_s)
            self._lead.note(took_s=took_s, found=found, gap_s=gap_s, more=self._more)
            if self._more:
                stop.wait(took_s)
            elif self._lead.ours:
                if not found:  # a commit of this process ends the wait, one of another node's does not
                    self._wake.wait(gap_s)
                    gap_s = min(2 * gap_s, limits.publish_again_s)
            else:
                # Without wake-ups the pause is short after a row, and grows while there is none.
                idle_s = min(limits.publish_poll_s, limits.publish_again_s if found else 2 * idle_s)
                pause_s = idle_s if self._polls else limits.publish_poll_s
                self._wake.wait(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, no secret
            self._rest.take(stop)
            self._done.tell()
        self._lead.forget()

    def _publish_rest(self, producer: Producer, *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and (self.publish_batch(producer) or self._more):
            pass

    def publish_batch(self, producer: Producer) -> int:
        """Publish the rows of one transaction and return how many were found.

        A row is marked only after its own acknowledgement from all in-sync replicas. Rows of a missing topic are left
        alone for a while. Raises UnavailableError where other rows were not acknowledged in time: those stay
        unpublished.
        """
        limits = self._settings.limits
        started = time.monotonic()
        absent = [topic for topic, (_, until) in self._absent.items() if until > started]
        with self._pool.connection() as connection, ShortTransaction(connection) as transaction:
            fetched = self._scan.fetch(
                transaction,
                limit=self._rows,
                size=limits.publish_bytes,
                without_topics=absent,
                expects=self._expects,
            )
            rows, self._more = fetched.rows, fetched.more
            records, refused = records_of(rows, node=self._node)
            outcomes = producer.send(list(records.values()), timeout_s=limits.publish_s) if records else []
            sent = dict(zip(records, outcomes, strict=True))
            published = {row_id: outcome for row_id, outcome in sent.items() if isinstance(outcome, Place)}
            refused |= {row_id: str(outcome) for row_id, outcome in sent.items() if isinstance(outcome, RefusedError)}
            for row_id, failure in refused.items():
                transaction.execute(queries["set_aside"], {"id": row_id, "failure": failure})
            if published:
                transaction.commit(queries["mark_published"], self._marks(published))
            else:
                transaction.commit()
        self._scan.settle(fetched, sent.keys() - published.keys() - refused.keys())
        if published:
            self._look_ahead(max(published))
        self._published += len(published)
        self._set_aside += len(refused)
        took_s = time.monotonic() - started
        self._adapt(len(rows), took_s)
        for row_id, failure in refused.items():
            logger.error("set_aside", outbox_id=row_id, reason=failure, hint="see `brewctl outbox list --failed`")
        if refused:
            self._metrics.failed(PublishFailure.REFUSED, len(refused))
        if published:
            self._metrics.published(len(published), took_s)
            self._done.add(rows=len(published), batches=1, took_ms=round(took_s * 1000))
        self._note_topics([(records[row_id].topic, outcome) for row_id, outcome in sent.items()])
        for outcome in outcomes:
            if isinstance(outcome, UnavailableError) and not isinstance(outcome, UnsentError):
                raise outcome
        return len(rows)

    def _look_ahead(self, last_id: int) -> None:
        """Once in a thousand ids, make the outbox's next partition: callers of outbox_add can't make it."""
        before, self._thousand = self._thousand, last_id // _IDS_BETWEEN_LOOKS
        if before not in {None, self._thousand}:
            with self._pool.connection() as connection:
                no_partition.make_ahead(connection, last_id)

    def _marks(self, published: Mapping[int, Place]) -> dict[str, object]:
        return {
            "node": self._node,
            "ids": list(published),
            "partitions": [place.partition for place in published.values()],
            "offsets": [place.offset for place in published.values()],
        }

    def _adapt(self, found: int, took_s: float) -> None:
        """Take more rows per transaction while there are more, fewer when transactions take long."""
        limits = self._settings.limits
        if took_s > limits.publish_s / 5:
            self._rows = max(limits.publish_rows_first, self._rows // 2)
        elif found >= self._rows:
            self._rows = min(limits.publish_rows, self._rows * 2)

    def _note_topics(self, outcomes: Sequence[tuple[str, Outcome]]) -> None:
        """Leave the rows of topics that could not be sent alone, for a pause that grows with each time."""
        taken = {topic for topic, outcome in outcomes if not isinstance(outcome, UnsentError)}
        unsent = {
            topic: outcome
            for topic, outcome in outcomes
            if isinstance(outcome, UnsentError) and not isinstance(outcome, HeldError)
        }
        for topic in taken - unsent.keys():
            self._absent.pop(topic, None)
        for topic, outcome in unsent.items():
            backoff, _ = self._absent.get(topic) or (Backoff(self._wake, longest_s=_LONGEST_ABSENCE_S), 0.0)
            self._metrics.failed(PublishFailure.CLOCK if isinstance(outcome, ClockError) else PublishFailure.NO_TOPIC)
            pause_s, worth_a_line = backoff.next()
            # Where another partition took records, only one broker's clock is wrong: the topic is not left alone.
            self._absent[topic] = (backoff, 0.0 if topic in taken else time.monotonic() + pause_s)
            if worth_a_line:
                event, hint = "topic_absent", "its rows wait"
                if isinstance(outcome, ClockError):
                    event, hint = "clock_refused", "its rows wait: synchronise the clocks of postgres and the brokers"
                logger.warning(event, topic=topic, reason=str(outcome), hint=hint)
