"""Group commit: orders that wait at the same time are written by one statement, in one commit.

    submit ──► queue ──► writer: all that wait ──one statement, one commit──► PostgreSQL
                           ├── written, or the key made an order before: callers are told in this thread
                           ├── PostgreSQL refuses an order: the batch is halved until that one is alone ─┐ in other
                           └── a lock, a lost connection: each order alone ──────────────────────────────┘ threads

The writer waits only for the database: the next batch gathers while one is committed. So a lone order is not delayed,
and batches grow with the load.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from uuid import UUID

import psycopg

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery.database import Pool
from brewctl.delivery.orders import store
from brewctl.delivery.orders.alone import Alone, Submission
from brewctl.delivery.orders.refusals import never_taken
from brewctl.delivery.orders.store import KeyReusedError, TooLateError
from brewctl.delivery.schema import no_partition
from brewctl.probes import heartbeat
from brewctl.proto.orders_pb2 import Order

logger = log.get(__name__)

_LOST = "08"  # the class of SQLSTATE about connections
_LOOK_S = 0.2  # how often an idle writer checks for a stop, and for orders whose time is up


def _is_lost(error: Exception) -> bool:
    """Whether the statement may have been committed: the connection was lost, so no answer came."""
    return (getattr(error, "sqlstate", None) or _LOST).startswith(_LOST)


class GroupCommit:
    """Takes orders from any number of threads, and writes them in the thread that calls `run`."""

    def __init__(self, settings: Settings, writing: Pool, alone: Pool, *, notify: Callable[[], None]) -> None:
        """Write batches with a connection of `writing`, single orders with those of `alone`.

        `notify` is called after each commit. The sessions of both pools must have create_lock_s as their lock_timeout.
        """
        self._settings = settings
        self._limits = settings.limits
        self._writing = writing
        self._single = alone
        self._notify = notify
        self._alone = Alone(settings, alone, self, notify=self._committed)
        self._queue: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        self._batch: dict[Submission, None] = {}  # the writer's orders without a result yet
        self._failure = log.Seldom(logger, "answer_failed")
        self._loop = heartbeat.Loop("writer", within_s=settings.limits.longest_turn_s)

    def submit(self, submission: Submission) -> None:
        """Hand an order to the writer. Returns at once; the caller must bound how many wait."""
        self._queue.put(submission)

    def run(self, stop: threading.Event) -> None:
        """Write submitted orders until `stop` is set, which must not be before the last order has its result."""
        with self._loop:
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._loop.beat()
            self._alone.end_late()
            try:
                batch = [self._queue.get(timeout=_LOOK_S)]
            except queue.Empty:
                continue
            while not self._queue.empty():
                batch.append(self._queue.get())
            self._batch = dict.fromkeys(batch)
            try:
                self._write(batch)
            except Exception as error:  # noqa: BLE001 - the orders get the error, and the writer goes on
                self._say(error)
                for each in list(self._batch):
                    self.failed(each, error)
        self._alone.close()

    def created(self, submission: Submission, order: Order) -> None:
        """Call `on_created` of a committed order."""
        self._tell(submission, lambda: submission.on_created(order))

    def failed(self, submission: Submission, error: Exception) -> None:
        """Call `on_failed` of an order that is not written, or not certainly."""
        self._tell(submission, lambda: submission.on_failed(error))

    def again(self, submission: Submission) -> None:
        """Put an order into the next batch, after it waited behind another one of its key."""
        self._queue.put(submission)

    def _write(self, batch: list[Submission]) -> None:
        free = []
        for each in batch:
            if self._alone.has_key_of(each.new):
                self._batch.pop(each)
                self._alone.join(each)
            else:
                free.append(each)
        self._attempt(free)

    def _timely(self, batch: Sequence[Submission]) -> list[Submission]:
        """Return the orders whose callers still wait, and fail the others."""
        timely = []
        for each in batch:
            if each.left_s() > 0:
                timely.append(each)
            else:
                self.failed(each, TooLateError())
        return timely

    def _attempt(self, batch: Sequence[Submission]) -> None:
        """Write orders with one statement; those that it did not write are looked up, halved or tried alone."""
        if not (batch := self._timely(batch)):
            return
        limits, sent = self._limits, False
        written: set[UUID] | None = None
        found: dict[UUID, Order] = {}
        failure: Exception | None = None
        try:
            with (
                self._writing.connection(limits.create_connection_s) as connection,
                connection.answering_within(limits.create_batch_s + limits.database_look_s),
            ):
                sent = True
                new = [each.new for each in batch]
                written = no_partition.with_room(
                    connection, lambda: store.write(connection, new, topic=self._settings.topic)
                )
                if len(written) < len(batch):
                    found = store.find(connection, [each.new for each in batch if each.new.id not in written])
        except Exception as error:  # noqa: BLE001 - handled below, by its kind
            failure = error
        if written:
            self._committed()
        rest = self._tell_of(batch, written or set(), found)
        if not rest:
            return
        if failure is None or written is not None:
            self._try_alone(rest)  # their keys were taken by orders that were not committed
        else:
            self._after(failure, rest, doubtful=sent and _is_lost(failure))

    def _after(self, failure: Exception, batch: list[Submission], *, doubtful: bool) -> None:
        """Choose what to do with a batch whose statement failed."""
        if isinstance(failure, psycopg.errors.LockNotAvailable):
            self._around_lock(batch)
        elif isinstance(failure, psycopg.Error) and not never_taken(failure):
            self._try_alone(batch, doubtful=doubtful)
        elif len(batch) == 1 and batch[0].new.idempotency_key is None:
            self.failed(batch[0], failure)
        else:
            for each in batch:
                self._batch.pop(each)
            self._alone.go(lambda: self._halve(batch))

    def _tell_of(self, batch: Sequence[Submission], written: set[UUID], found: dict[UUID, Order]) -> list[Submission]:
        """Pass on the orders that are committed; return the others."""
        rest = []
        for each in batch:
            if each.new.id in written:
                self.created(each, each.new.order)
            elif each.new.id in found:
                try:
                    first = store.first(each.new, found[each.new.id])
                except KeyReusedError as error:
                    self.failed(each, error)
                else:
                    self.created(each, first)
            else:
                rest.append(each)
        return rest

    def _halve(self, batch: Sequence[Submission]) -> None:
        """Find the refused orders, in a thread beside the writer, and write the others in one commit."""
        if not (batch := self._timely(batch)):
            return
        sent = doubtful = False
        written: set[UUID] = set()
        refused: dict[UUID, Exception] = {}
        found: dict[UUID, Order] = {}
        try:
            with self._single.connection(self._limits.database_wait_s) as connection:
                sent = True
                written, refused = store.write_around(
                    connection, [each.new for each in batch], topic=self._settings.topic
                )
                sent = False
                # A refused order may be a repeat of one written before the constraint was added: then that one counts.
                unknown = [each.new for each in batch if each.new.id not in written]
                found = store.find(connection, [new for new in unknown if new.idempotency_key or new.id not in refused])
        except Exception as error:  # noqa: BLE001 - each order is tried alone, and gets its own error
            doubtful = sent and _is_lost(error)
        if written:
            self._committed()
        refused = {order_id: error for order_id, error in refused.items() if order_id not in found}
        for each in batch:
            if each.new.id in refused:
                self.failed(each, refused[each.new.id])
        rest = [each for each in batch if each.new.id not in refused]
        self._try_alone(self._tell_of(rest, written, found), doubtful=doubtful)

    def _around_lock(self, batch: Sequence[Submission]) -> None:
        """Write the orders of a batch that don't need the lock which another transaction holds.

        Repeated keys are read, which needs no lock; other orders with a key are tried alone. Those without a key are
        written together, or alone where the whole batch had none.
        """
        keyed = [each for each in batch if each.new.idempotency_key is not None]
        keyless = [each for each in batch if each.new.idempotency_key is None]
        if keyed:
            try:
                with (
                    self._writing.connection(self._limits.create_connection_s) as connection,
                    connection.answering_within(self._limits.create_batch_s + self._limits.database_look_s),
                ):
                    found = store.find(connection, [each.new for each in keyed])
            except psycopg.Error:
                found = {}
            self._try_alone(self._tell_of(keyed, set(), found))
        if keyed and keyless:
            self._attempt(keyless)
        else:
            self._try_alone(keyless)

    def _try_alone(self, batch: Sequence[Submission], *, doubtful: bool = False) -> None:
        for each in batch:
            self._batch.pop(each, None)
            self._alone.submit(each, doubtful=doubtful)

    def _committed(self) -> None:
        try:
            self._notify()
        except Exception as error:  # noqa: BLE001 - the orders are committed, and their callers must be told
            self._say(error)

    def _tell(self, submission: Submission, tell: Callable[[], None]) -> None:
        self._batch.pop(submission, None)
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - the other calls must still be told
            self._say(error)
            try:
                submission.on_failed(error)
            except Exception as again:  # noqa: BLE001
                self._say(again)

    def _say(self, error: Exception) -> None:
        self._failure.warn(reason=f"{type(error).__name__}: {log.reason(error)}", hint="with -v the log says where")
        logger.debug("answer_failed", exc_info=error)
