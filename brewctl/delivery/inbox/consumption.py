"""A member of a consumer group that runs a downstream: reads, lets the inbox write, and commits offsets now and then.

    poll ─► inbox: effects, COMMIT ─► settled ─► commit offsets, at most once a second
      └─► next poll                      │ crash here: redelivered, found in processed_events

Where more records wait, the next batch is read while PostgreSQL works on one: one is in the database and one in hand,
never more, and they are written in their order. Where none wait, the member rests after a batch, by what it cost: what
comes meanwhile shares a poll and a transaction. Before partitions leave, the transaction in the database is finished
and the offsets of what is done are committed; the rest, and the batch in hand, come again, to whoever has the
partitions then.
"""

import contextlib
import math
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from brewctl import log, metrics
from brewctl.config import Settings
from brewctl.delivery import broker, database, presence, registry
from brewctl.delivery.broker import Consumer, ForbiddenError, Overtaken, Record, UnavailableError
from brewctl.delivery.crowding import Crowding
from brewctl.delivery.database import rights
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.inbox import retrying, traced_inbox
from brewctl.delivery.inbox.batch import Batch
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.inbox.lanes import lanes_of
from brewctl.delivery.inbox.settled_offsets import SettledOffsets
from brewctl.delivery.inbox.waiting_events import note_lanes, require_none_waiting
from brewctl.delivery.rest import Rest
from brewctl.delivery.schema import readiness, setup, versions
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.lifecycle import Backoff, run_together
from brewctl.metrics import RetryReason
from brewctl.probes import heartbeat
from brewctl.probes.health import Finding, Health

logger = log.get(__name__)

_LOOK_S = 0.2  # how often one that waits for its transaction looks for a stop


def consume(
    settings: Settings,
    downstream: Downstream,
    stop: threading.Event,
    *,
    node: str,
    name: str = "",
    own: Settings | None = None,
    tables: Collection[str] | None = None,
    needs: Collection[str] = (),
    health: Health | None = None,
) -> None:
    """Run a downstream until `stop` is set, then print its counters.

    `name`: its MODULE:NAME, under which it is registered. `own`: its database, where that is not the story's, in which
    `tables` are needed; default: all. `needs`: the sections of grants.sql whose rights it must have there. `health`
    hears how it is.

    Raises UnreachableError where a server is away at the start, BrewError where a table or a topic is missing, and
    where the transaction in hand was not finished in time after a stop: it is undone then.
    """
    own = own or settings
    broker.require_topic(settings)
    with (
        database.open_pool(own, name=node, size=1, ready=setup.required(own, tables)) as pool,
        database.explained(own),
        lanes_of(settings, own, downstream, node=node, tables=tables) as lanes,
    ):
        with pool.connection() as connection:
            rights.require(connection, f"downstream {downstream.group}", needs)
            versions.tell_of_newer(connection)
            if not downstream.lanes:
                require_none_waiting(connection, downstream.group)
            if name:
                note_lanes(connection, downstream, name)
        inbox = traced_inbox.opened(settings, pool, downstream, node=node)
        consumption = Consumption(settings, inbox, group=registry.kafka_group(settings, downstream), node=node)
        replica = presence.Replica(node, downstream.group)
        check = readiness.DatabaseCheck(own, node=node, tables=tables)
        actors = {"consumer": lambda: consumption.run(stop)}
        work, findings = inbox.work, [consumption.findings]
        if lanes:
            inbox.on_taken = lanes.wake
            actors["lanes"] = lambda: lanes.run(stop)
            work, findings = lambda: lanes.work(inbox.work()), [*findings, lanes.findings]
        if health:
            health.up(check, *findings)
        try:
            with presence.kept(settings, replica, work, inbox=own), contextlib.closing(check):
                run_together(actors, stop, drain_timeout_s=settings.limits.drain_s)
        finally:
            done = work()
            counters = f"processed={done.processed} {downstream.verb}={done.effects} skipped={done.skipped}"
            log.say(node, f"{downstream.name} stopped. {counters}")


@dataclass
class _Writing:
    """The batch that the database works on."""

    batch: Batch
    assignment: int  # by which assignment of partitions it was read
    applied: Future[None]
    began_s: float = field(default_factory=time.monotonic)
    noted: Sequence[Record] = ()  # those that are known to be settled


class Consumption:
    """One member after another of a group, each until a poll of its fails."""

    def __init__(self, settings: Settings, inbox: Inbox, *, group: str, node: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._group = group
        self._node = node
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="inbox")
        self._writing: _Writing | None = None
        self._settled = SettledOffsets(settings.limits)
        self._rest = Rest(most_s=settings.limits.consume_rest_s, crowding=Crowding().share)
        self._joined = False  # at least once: what is forbidden since then, somebody may allow again
        self._late_at: float | None = None  # when, after a stop, the transaction in hand is waited for no more
        self._late: _Writing | None = None  # what was ended then
        self._loop = heartbeat.Loop("consumer", within_s=settings.limits.poll_interval_s)
        self._metrics = metrics.inbox(inbox.group)
        self._member: Consumer | None = None
        self._apart = "it has not joined its group yet"  # why it is no member
        self._overtaken: dict[int, int] = {}  # partition → where it went on behind records that were gone
        self._left_at = math.inf  # when its partitions left, and others have not come

    def findings(self) -> Iterator[Finding]:
        """Say whether events have their effects here."""
        apart, session_s = self._apart, self._settings.limits.session_s
        if not apart and time.monotonic() > self._left_at + session_s:
            apart = f"its partitions have left, and it has waited for others for more than {session_s:g} s"
        elif not apart and self._member and self._member.silent:
            apart = f"kafka is away: it has answered no heartbeat for {session_s:g} s"
        yield Finding(ready=not apart, text=apart or f"it is a member of group {self._group}")
        if stopped := self._inbox.stopped:
            yield Finding(ready=False, text=f"{stopped}; it takes no new events until one succeeds")
        else:
            yield Finding(ready=True, text="its effects have not stopped")

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set; the transaction in the database is finished and its offsets committed first.

        Raises BrewError for what no retry mends, or is forbidden at the first, and where that transaction had to be
        given up; outages of either server are retried for ever, and so is what is forbidden later.
        """
        backoff = Backoff(stop)
        with self._loop:
            self._run(stop, backoff)
        if self._late and self._late.applied.exception():
            raise BrewError("the transaction in hand was not finished in time", hint="its events are delivered again")

    def _run(self, stop: threading.Event, backoff: Backoff) -> None:
        try:
            while not stop.is_set():
                try:
                    self._be_a_member(stop, backoff)
                except ForbiddenError as error:
                    if not self._joined:
                        raise
                    self._apart = self._inbox.trouble = error.message
                    if backoff.pause() and not stop.is_set():
                        logger.warning("kafka_forbids", reason=error.message, hint=error.hint)
                except (UnavailableError, UnreachableError, UsageError) as error:  # of a file that was replaced
                    self._apart = self._inbox.trouble = f"kafka is away: {error}"
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
            on_revoked=lambda: self._let_go(consumer, stop),
            on_overtaken=self._report_overtaken,
        )
        self._settled = SettledOffsets(self._settings.limits)
        self._member = consumer
        try:
            while not stop.is_set():
                self._loop.beat()
                records = self._read(consumer, stop)
                batch, assignment = self._inbox.read(records), consumer.assignments
                finished = self._finish(consumer, stop)
                # A batch that was read before a rebalance is dropped: Kafka will deliver it again.
                if records and assignment == consumer.assignments and not stop.is_set():
                    self._write(batch, assignment)
                if finished:
                    self._note(finished)
                    backoff.reset()
                elif not records:
                    self._inbox.rest()
                self._commit_in_time(consumer)
            if finished := self._finish(consumer, stop):
                self._note(finished)
            self._commit(consumer)
        finally:
            if writing := self._writing:
                writing.batch.given_up = True
                self._wait(writing, stop)
                self._writing = None
            self._member = None
            consumer.close()

    def _report_assignment(self, partitions: list[int]) -> None:
        self._apart = self._inbox.trouble = ""
        self._left_at, self._joined = math.inf, True
        log.say(self._node, f"partitions assigned {partitions}")

    def _report_overtaken(self, found: Sequence[Overtaken]) -> None:
        """Count what is gone unread, once, and keep saying so until the process ends."""
        for each in found:
            told = self._overtaken.get(each.partition)
            if each.new or each.first == told:  # nothing was committed there since
                continue
            self._overtaken[each.partition] = each.first
            removed = each.removed if told is None else min(each.removed, abs(each.first - told))
            self._metrics.overtaken(removed or 1)  # how many went with a partition that was cut off nobody knows
        if self._overtaken:
            self._inbox.overtaken = (
                f"records of partitions {sorted(self._overtaken)} were gone before the group read them: "
                f"run `{broker.REPUBLISH}`"
            )

    def _read(self, consumer: Consumer, stop: threading.Event) -> list[Record]:
        """Read the next records: at once where some wait, else when the batch in the database is done, after a rest."""
        if not consumer.behind:
            if self._writing:
                return []
            self._rest.take(stop)
        timeout_s = 0 if self._writing else min(consumer.idle_poll_s, self._settled.due_in_s(consumer.committed_at))
        began_s = time.thread_time()  # which stands still while it waits for records
        if records := consumer.poll(timeout_s=timeout_s):
            self._rest.worked(time.thread_time() - began_s, count=len(records))
        return records

    def _write(self, batch: Batch, assignment: int) -> None:
        self._writing = _Writing(batch, assignment, self._writer.submit(self._inbox.apply, batch))

    def _finish(self, consumer: Consumer, stop: threading.Event) -> _Writing | None:
        """Wait until the batch in the database is where it belongs, for good, and return it.

        None where there is none, or where a stop or a rebalance came before that: then the rest of it comes again. An
        outage leaves the group as it is: the member goes on polling between the tries, as it does within a long one.
        """
        backoff = Backoff(stop)
        while writing := self._writing:
            self._wait(writing, stop, consumer)
            if self._writing is not writing:  # its partitions have left
                return None
            error = writing.applied.exception()
            if error is None:
                self._writing, self._inbox.trouble = None, ""
                self._rest.worked(time.monotonic() - writing.began_s)
                return writing
            if isinstance(error, Later):
                self._metrics.retried(RetryReason.LATER)
                self._stay_for(error.seconds, writing, consumer, stop)
            else:
                self._tell_and_pause(error, backoff, stop)
            if stop.is_set():
                break
            self._stay(writing, consumer)
            if self._writing is writing:
                writing.applied = self._writer.submit(self._inbox.apply, writing.batch)
        if writing:
            self._writing = None
            self._note(writing)
        return None

    def _wait(self, writing: _Writing, stop: threading.Event, consumer: Consumer | None = None) -> None:
        """Wait for the end of a try; meanwhile remain a member of the group, unless that takes its partitions away.

        After a stop no further transaction is begun.
        """
        stayed_at = time.monotonic()
        while self._writing is writing and not _is_done(writing.applied, within_s=_LOOK_S):
            self._loop.beat()
            if stop.is_set():
                writing.batch.given_up = True
                self._end_in_time(writing)
            elif consumer and time.monotonic() >= stayed_at + self._settings.limits.heartbeat_s:
                self._stay(writing, consumer)
                stayed_at = time.monotonic()

    def _tell_and_pause(self, error: BaseException, backoff: Backoff, stop: threading.Event) -> None:
        """Say why a batch is tried again, the longer it takes the more seldom, and wait. Raises what no retry mends."""
        trouble = retrying.of(error)
        self._metrics.retried(trouble.reason)
        reason = " ".join(str(error).split())
        self._inbox.trouble = f"its batch is tried again: {reason or trouble.event}"
        if not stop.is_set() and backoff.pause():
            tell = logger.error if trouble.reason is RetryReason.STOPPED else logger.warning
            tell(trouble.event, reason=reason, hint=trouble.hint)

    def _stay_for(self, seconds: float, writing: _Writing, consumer: Consumer, stop: threading.Event) -> None:
        """Wait before a batch is tried again, as its handler asked for, and remain a member meanwhile."""
        until = time.monotonic() + seconds
        logger.debug("later", seconds=seconds)
        while self._writing is writing and (left_s := until - time.monotonic()) > 0:
            if stop.wait(min(left_s, self._settings.limits.heartbeat_s)):
                return
            self._loop.beat()
            self._stay(writing, consumer)

    def _stay(self, writing: _Writing, consumer: Consumer) -> None:
        """Remain a member while a batch takes long, and commit the offsets of what is done of it."""
        self._note(writing)
        self._commit_in_time(consumer)
        consumer.keep_alive()

    def _end_in_time(self, writing: _Writing) -> None:
        """After a stop: end the transaction in hand, once it is late."""
        limits = self._settings.limits
        # Left after that: for PostgreSQL to end it, for Kafka to take a last commit and the leave.
        late_s = max(0.0, limits.drain_s - 2 * limits.database_look_s - limits.kafka_leave_s)
        now = time.monotonic()
        self._late_at = self._late_at or now + late_s
        if now >= self._late_at and not writing.applied.done():
            self._late = writing
            self._inbox.end_statement(within_s=limits.database_look_s)

    def _let_go(self, consumer: Consumer, stop: threading.Event) -> None:
        """Finish the transaction in the database, and commit the offsets of what is done, before partitions leave."""
        undone = 0
        self._left_at = time.monotonic()
        if writing := self._writing:
            writing.batch.given_up = True
            while not writing.applied.done():
                self._loop.beat()
                consumer.stay_while_leaving()
                if stop.is_set():
                    self._end_in_time(writing)
            self._writing = None
            self._inbox.forget(writing.batch)
            self._note(writing)
            undone = len(writing.batch.records) - len(writing.batch.settled)
        self._commit(consumer)
        if undone:
            logger.info("batch_given_up", records=undone, reason="partitions leave", hint="they are delivered again")

    def _note(self, written: _Writing) -> None:
        """Note what is done of a batch: its offsets may be committed."""
        settled = written.batch.settled
        if settled is not written.noted:
            self._settled.note(settled, new=len(settled) - len(written.noted), assignment=written.assignment)
            written.noted = settled

    def _commit_in_time(self, consumer: Consumer) -> None:
        """Commit the offsets of what is done, where that is due."""
        if self._settled.due_in_s(consumer.committed_at) == 0:
            self._commit(consumer)

    def _commit(self, consumer: Consumer) -> None:
        """Commit the offsets of what is done, unless its partitions have left meanwhile."""
        settled = self._settled.take(assignment=consumer.assignments)
        if settled and (reason := consumer.commit(settled)):
            logger.warning("commit_refused", reason=reason, hint="redelivered and skipped as duplicates")


def _is_done(applied: Future[None], *, within_s: float) -> bool:
    """Wait for the end of a try. At half the cost of `futures.wait`, which is made for several."""
    with contextlib.suppress(TimeoutError):
        applied.exception(within_s)
    return applied.done()
