"""Reads a downstream's records as a member of its consumer group, has the inbox apply them, and commits their offsets.

    poll ─► inbox: effects, COMMIT ─► settled ─► commit offsets, at most once a second
      └─► next poll                      │ crash here: redelivered, found in processed_events

While PostgreSQL works on one batch, the next one is read if records wait: at most one batch is in the database and one
in memory, and they are applied in their order. If no records wait, the member rests after a batch, for a time that
depends on the batch's cost: records that arrive meanwhile share a poll and a transaction. Before partitions are
revoked, the open transaction is finished and the offsets of processed records are committed. Kafka delivers the rest,
and the batch in memory, again.
"""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from brewctl import log, metrics
from brewctl.config import Settings
from brewctl.delivery import broker
from brewctl.delivery.broker import Consumer, ForbiddenError, Overtaken, Record, UnavailableError
from brewctl.delivery.crowding import Crowding
from brewctl.delivery.downstream import Later
from brewctl.delivery.inbox import retrying
from brewctl.delivery.inbox.batch import Batch
from brewctl.delivery.inbox.in_flight import InFlight
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.inbox.settled_offsets import SettledOffsets
from brewctl.delivery.rest import Rest
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.lifecycle import Backoff
from brewctl.metrics import RetryReason
from brewctl.probes import heartbeat
from brewctl.probes.health import Readiness

logger = log.get(__name__)

_LOOK_S = 0.2  # how often a wait for the transaction looks for a stop


class Consumption:
    """Consumes as a member of a group, and joins as a new member after each failed poll."""

    def __init__(self, settings: Settings, inbox: Inbox, *, group: str, node: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._group = group
        self._node = node
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="inbox")
        self._in_flight: InFlight | None = None
        self._settled = SettledOffsets(settings.limits)
        self._rest = Rest(most_s=settings.limits.consume_rest_s, crowding=Crowding().share)
        self._joined = False  # at least once: a right that is lacking since then may be granted again
        self._give_up_at: float | None = None  # when, after a stop, the open transaction is cancelled
        self._cancelled: InFlight | None = None  # the batch whose transaction was cancelled then
        self._loop = heartbeat.Loop("consumer", within_s=settings.limits.poll_interval_s)
        self._metrics = metrics.inbox(inbox.group)
        self._member: Consumer | None = None
        self._absence = "it has not joined its group yet"  # why it is no member; empty while it is one
        self._overtaken: dict[int, int] = {}  # partition → the offset it continued at, behind removed records
        self._revoked_at = math.inf  # when its partitions were revoked, if none were assigned since

    def findings(self) -> Iterator[Readiness]:
        """Yield for /readyz whether it is a member of its group, and whether its downstream has stopped."""
        absence, session_s = self._absence, self._settings.limits.session_s
        if not absence and time.monotonic() > self._revoked_at + session_s:
            absence = f"its partitions have left, and it has waited for others for more than {session_s:g} s"
        elif not absence and self._member and self._member.silent:
            absence = f"kafka is away: it has answered no heartbeat for {session_s:g} s"
        yield Readiness(ready=not absence, text=absence or f"it is a member of group {self._group}")
        if stopped := self._inbox.stopped:
            yield Readiness(ready=False, text=f"{stopped}; it takes no new events until one succeeds")
        else:
            yield Readiness(ready=True, text="its effects have not stopped")

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set, then finish the open transaction and commit its offsets.

        Outages of either server are retried for ever, and so is a right of Kafka's that is taken away later. Raises
        BrewError where a retry can't help, where a right is lacking at the start, and where the open transaction had
        to be cancelled.
        """
        backoff = Backoff(stop)
        with self._loop, contextlib.closing(self._inbox), self._writer:
            while not stop.is_set():
                try:
                    self._consume_as_member(stop, backoff)
                except ForbiddenError as error:
                    if not self._joined:
                        raise
                    self._absence = self._inbox.trouble = error.message
                    if backoff.pause() and not stop.is_set():
                        logger.warning("kafka_forbids", reason=error.message, hint=error.hint)
                except (UnavailableError, UnreachableError, UsageError) as error:  # UsageError: of a replaced file
                    self._absence = self._inbox.trouble = f"kafka is away: {error}"
                    if backoff.pause() and not stop.is_set():
                        reason = broker.reason(self._settings, error)
                        logger.warning("kafka_unavailable", reason=reason, hint="joins again")
        if self._cancelled and self._cancelled.attempt.exception():
            raise BrewError("the transaction in hand was not finished in time", hint="its events are delivered again")

    def _consume_as_member(self, stop: threading.Event, backoff: Backoff) -> None:
        """Consume as one member of the group until `stop`, or until a poll fails.

        A failed poll may have moved past records that it did not return: only a new member, which starts at the
        committed offsets, is sure to read them.
        """
        consumer = Consumer(
            self._settings,
            stop,
            group=self._group,
            node=self._node,
            on_assigned=self._report_assignment,
            on_revoked=lambda: self._finish_before_revoke(consumer, stop),
            on_overtaken=self._report_overtaken,
        )
        self._settled = SettledOffsets(self._settings.limits)
        self._member = consumer
        try:
            while not stop.is_set():
                self._loop.beat()
                records = self._read(consumer, stop)
                batch, assignment = self._inbox.read(records), consumer.assignments
                finished = self._await_batch(consumer, stop)
                # A batch that was read before a rebalance is dropped: Kafka delivers it again.
                if records and assignment == consumer.assignments and not stop.is_set():
                    self._in_flight = InFlight(batch, assignment, self._apply(batch))
                if finished:
                    self._note_settled(finished)
                    backoff.reset()
                elif not records:
                    self._inbox.rest()
                self._commit_if_due(consumer)
            if finished := self._await_batch(consumer, stop):
                self._note_settled(finished)
            self._commit_offsets(consumer)
        finally:
            if in_flight := self._in_flight:
                in_flight.batch.given_up = True
                self._await_try(in_flight, stop)
                self._in_flight = None
            self._member = None
            consumer.close()

    def _report_assignment(self, partitions: list[int]) -> None:
        self._absence = self._inbox.trouble = ""
        self._revoked_at, self._joined = math.inf, True
        log.say(self._node, f"partitions assigned {partitions}")

    def _report_overtaken(self, found: Sequence[Overtaken]) -> None:
        """Count records that Kafka removed unread, once, and show them as a trouble until the process ends."""
        for each in found:
            told = self._overtaken.get(each.partition)
            if each.new or each.first == told:  # told already: nothing was committed there since
                continue
            self._overtaken[each.partition] = each.first
            removed = each.removed if told is None else min(each.removed, abs(each.first - told))
            self._metrics.overtaken(removed or 1)  # at least one: of a truncated partition the number is unknown
        if self._overtaken:
            self._inbox.overtaken = (
                f"records of partitions {sorted(self._overtaken)} were gone before the group read them: "
                f"run `{broker.REPUBLISH}`"
            )

    def _read(self, consumer: Consumer, stop: threading.Event) -> list[Record]:
        """Poll: at once if records wait; else once no batch is in the database, and after a rest."""
        if not consumer.behind:
            if self._in_flight:
                return []
            self._rest.take(stop)
        timeout_s = 0 if self._in_flight else min(consumer.idle_poll_s, self._settled.due_in_s(consumer.committed_at))
        began_s = time.thread_time()  # the processor's time: waiting for records costs none
        if records := consumer.poll(timeout_s=timeout_s):
            self._rest.worked(time.thread_time() - began_s, count=len(records))
        return records

    def _apply(self, batch: Batch) -> Future[None]:
        return self._writer.submit(self._inbox.apply, batch)

    def _await_batch(self, consumer: Consumer, stop: threading.Event) -> InFlight | None:
        """Wait until the batch in the database is processed, through all its retries, and return it.

        None where there is none, or where a stop or a rebalance came first: then Kafka delivers the rest of it again.
        The member keeps its partitions during an outage: it polls between the tries, and within a long one.
        """
        backoff = Backoff(stop)
        while in_flight := self._in_flight:
            self._await_try(in_flight, stop, consumer)
            if self._in_flight is not in_flight:  # its partitions were revoked
                return None
            error = in_flight.attempt.exception()
            if error is None:
                self._in_flight, self._inbox.trouble = None, ""
                self._rest.worked(time.monotonic() - in_flight.began_s)
                return in_flight
            if isinstance(error, Later):
                self._metrics.retried(RetryReason.LATER)
                self._wait_as_asked(error.seconds, in_flight, consumer, stop)
            else:
                self._report_and_pause(error, backoff, stop)
            if stop.is_set():
                break
            self._keep_membership(in_flight, consumer)
            if self._in_flight is in_flight:
                in_flight.attempt = self._apply(in_flight.batch)
        if in_flight:
            self._in_flight = None
            self._note_settled(in_flight)
        return None

    def _await_try(self, in_flight: InFlight, stop: threading.Event, consumer: Consumer | None = None) -> None:
        """Wait for the end of a try, or for a rebalance; meanwhile keep the membership. A stop ends a batch early."""
        stayed_at = time.monotonic()
        while self._in_flight is in_flight and not in_flight.is_done(within_s=_LOOK_S):
            self._loop.beat()
            if stop.is_set():
                in_flight.batch.given_up = True
                self._cancel_if_late(in_flight)
            elif consumer and time.monotonic() >= stayed_at + self._settings.limits.heartbeat_s:
                self._keep_membership(in_flight, consumer)
                stayed_at = time.monotonic()

    def _report_and_pause(self, error: BaseException, backoff: Backoff, stop: threading.Event) -> None:
        """Log why a batch is tried again, ever more seldom, and wait. Raises an error that no retry can mend."""
        trouble = retrying.of(error)
        self._metrics.retried(trouble.reason)
        reason = " ".join(str(error).split())
        self._inbox.trouble = f"its batch is tried again: {reason or trouble.event}"
        if not stop.is_set() and backoff.pause():
            tell = logger.error if trouble.reason is RetryReason.STOPPED else logger.warning
            tell(trouble.event, reason=reason, hint=trouble.hint)

    def _wait_as_asked(self, seconds: float, in_flight: InFlight, consumer: Consumer, stop: threading.Event) -> None:
        """Wait for as long as a handler's Later asks for, and keep the membership meanwhile."""
        until = time.monotonic() + seconds
        logger.debug("later", seconds=seconds)
        while self._in_flight is in_flight and (left_s := until - time.monotonic()) > 0:
            if stop.wait(min(left_s, self._settings.limits.heartbeat_s)):
                return
            self._loop.beat()
            self._keep_membership(in_flight, consumer)

    def _keep_membership(self, in_flight: InFlight, consumer: Consumer) -> None:
        """Stay a member while a batch takes long, and commit the offsets of its processed records."""
        self._note_settled(in_flight)
        self._commit_if_due(consumer)
        consumer.keep_alive()

    def _cancel_if_late(self, in_flight: InFlight) -> None:
        """After a stop: make PostgreSQL cancel the open transaction once it takes too long."""
        limits = self._settings.limits
        # The rest of the drain is for PostgreSQL to cancel it, and for a last commit to Kafka and the leave.
        late_s = max(0.0, limits.drain_s - 2 * limits.database_look_s - limits.kafka_leave_s)
        now = time.monotonic()
        self._give_up_at = self._give_up_at or now + late_s
        if now >= self._give_up_at and not in_flight.attempt.done():
            self._cancelled = in_flight
            self._inbox.end_statement(within_s=limits.database_look_s)

    def _finish_before_revoke(self, consumer: Consumer, stop: threading.Event) -> None:
        """Finish the open transaction, and commit the offsets of processed records, before partitions are revoked."""
        undone = 0
        self._revoked_at = time.monotonic()
        if in_flight := self._in_flight:
            in_flight.batch.given_up = True
            while not in_flight.attempt.done():
                self._loop.beat()
                consumer.stay_while_leaving()
                if stop.is_set():
                    self._cancel_if_late(in_flight)
            self._in_flight = None
            self._inbox.forget(in_flight.batch)
            self._note_settled(in_flight)
            undone = len(in_flight.batch.records) - len(in_flight.batch.settled)
        self._commit_offsets(consumer)
        if undone:
            logger.info("batch_given_up", records=undone, reason="partitions leave", hint="they are delivered again")

    def _note_settled(self, in_flight: InFlight) -> None:
        """Note the batch's processed records: their offsets may be committed."""
        settled = in_flight.batch.settled
        if settled is not in_flight.noted:
            self._settled.note(settled, new=len(settled) - len(in_flight.noted), assignment=in_flight.assignment)
            in_flight.noted = settled

    def _commit_if_due(self, consumer: Consumer) -> None:
        """Commit the offsets of processed records, if a commit is due."""
        if self._settled.due_in_s(consumer.committed_at) == 0:
            self._commit_offsets(consumer)

    def _commit_offsets(self, consumer: Consumer) -> None:
        """Commit the offsets of processed records, unless their partitions were revoked meanwhile."""
        settled = self._settled.take(assignment=consumer.assignments)
        if settled and (reason := consumer.commit(settled)):
            logger.warning("commit_refused", reason=reason, hint="redelivered and skipped as duplicates")
