"""A member of a consumer group that runs a projection: reads, lets the inbox write, then commits offsets.

    poll ─► inbox: effects, COMMIT ─► commit offsets
      └─► next poll    │ crash here: redelivered, found in processed_events

While PostgreSQL works on a batch the next one is read: one is in the database and one in hand, never more, and they
are written in their order. Before partitions leave, the one in the database is finished and its offsets are
committed; the one in hand comes again, to whoever has them then.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import broker, database, presence
from brewctl.delivery.broker import Consumer, Record, UnavailableError
from brewctl.delivery.inbox import Batch, Inbox, Projection
from brewctl.errors import UnreachableError
from brewctl.lifecycle import Backoff, run_together

logger = log.get(__name__)

_POLL_S = 0.2  # also the longest that a stop waits for an idle poll


def consume(settings: Settings, projection: Projection, stop: threading.Event, *, node: str) -> None:
    """Run a projection until `stop` is set, then print its counters.

    Raises UnreachableError where a server is away at the start, BrewError where a table or a topic is missing.
    """
    broker.require_topic(settings)
    with database.open_pool(settings, name=node, size=1) as pool, database.explained(settings):
        inbox = Inbox(settings, pool, projection, node=node)
        consumption = Consumption(settings, inbox, group=projection.consumer, node=node)
        replica = presence.Replica(node, projection.consumer)
        try:
            with presence.kept(settings, replica, inbox.tally.work):
                run_together({"consumer": lambda: consumption.run(stop)}, stop, drain_timeout_s=settings.limits.drain_s)
        finally:
            tally = inbox.tally
            counters = f"processed={tally.processed} {projection.done}={tally.effects} skipped={tally.skipped}"
            log.say(node, f"{projection.service} stopped. {counters}")


@dataclass(frozen=True)
class _Writing:
    """The batch that the database works on."""

    records: Sequence[Record]
    batch: Batch
    assignment: int  # by which assignment of partitions it was read
    applied: Future[None]


class Consumption:
    """One member after another of a group, each until a poll of its fails."""

    def __init__(self, settings: Settings, inbox: Inbox, *, group: str, node: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._group = group
        self._node = node
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="inbox")
        self._writing: _Writing | None = None

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set; the batch in the database is finished and committed first.

        Raises BrewError for what no retry mends; outages of either server are retried for ever.
        """
        backoff = Backoff(stop)
        try:
            while not stop.is_set():
                try:
                    self._be_a_member(stop, backoff)
                except (UnavailableError, UnreachableError) as error:
                    if backoff.pause() and not stop.is_set():
                        reason = broker.reason(self._settings, error)
                        logger.warning("kafka_unavailable", reason=reason, hint="joins again")
        finally:
            self._writer.shutdown()
            self._inbox.close()

    def _be_a_member(self, stop: threading.Event, backoff: Backoff) -> None:
        """Be a member of the group until `stop`, or until a poll fails.

        A failed poll may have moved past records that it did not return: only a new member, which
        starts at the committed offsets, is sure to see them.
        """
        consumer = Consumer(
            self._settings,
            stop,
            group=self._group,
            node=self._node,
            on_assigned=self._report_assignment,
            on_revoked=lambda: self._let_go(consumer),
        )
        try:
            while not stop.is_set():
                records = consumer.poll(timeout_s=0 if self._writing else _POLL_S)
                batch, assignment = Batch.of(records), consumer.assignments
                finished = self._finish(consumer, stop)
                # Read before partitions were assigned anew, it comes again.
                if records and assignment == consumer.assignments and not stop.is_set():
                    self._write(records, batch, assignment)
                if finished:
                    self._commit(consumer, finished)
                    backoff.reset()
                elif not records:
                    self._inbox.done.tell()
            if finished := self._finish(consumer, stop):
                self._commit(consumer, finished)
        finally:
            if self._writing:
                wait([self._writing.applied])
                self._writing = None
            consumer.close()

    def _report_assignment(self, partitions: list[int]) -> None:
        log.say(self._node, f"partitions assigned {partitions}")

    def _write(self, records: Sequence[Record], batch: Batch, assignment: int) -> None:
        self._writing = _Writing(records, batch, assignment, self._writer.submit(self._inbox.apply, batch))

    def _finish(self, consumer: Consumer, stop: threading.Event) -> _Writing | None:
        """Wait until the batch in the database is where it belongs, for good, and return it.

        None where there is none, or where a stop or a rebalance came before that: then it comes again. An outage
        leaves the group as it is: the member goes on polling between the tries.
        """
        backoff = Backoff(stop)
        while writing := self._writing:
            try:
                writing.applied.result()
            except database.UNAVAILABLE as error:
                retry, reason = "postgres_unavailable", str(error).strip()
            except (UnavailableError, UnreachableError) as error:
                retry, reason = "dead_letter_unacknowledged", str(error)
            else:
                self._writing = None
                return writing
            if backoff.pause():
                logger.warning(retry, reason=reason, hint="the batch is kept and retried")
            if stop.is_set():
                break
            consumer.keep_alive()
            if writing.assignment != consumer.assignments:
                logger.warning("batch_given_up", reason="partitions were assigned anew", hint="it is delivered again")
                break
            self._write(writing.records, writing.batch, writing.assignment)
        self._writing = None
        return None

    def _let_go(self, consumer: Consumer) -> None:
        """Finish what is in the database, and commit its offsets, before its partitions leave."""
        if (writing := self._writing) and not writing.applied.exception():
            self._writing = None
            self._commit(consumer, writing)

    def _commit(self, consumer: Consumer, written: _Writing) -> None:
        """Commit the offsets of a batch whose effects are committed, unless its partitions have left meanwhile."""
        if written.assignment == consumer.assignments and (reason := consumer.commit(written.records)):
            logger.warning("commit_refused", reason=reason, hint="redelivered and skipped as duplicates")
