"""Orders that their batch did not write, each tried in a transaction of its own.

    fresh: not tried alone yet ─────────────────► any thread ──► the caller is told
    held: waited for a lock, or took too long ──► half of the threads; each try waits create_lock_s for a lock
      └── behind: orders of the same idempotency key; back to the writer when the held one has ended

An order that waits for a lock of another transaction has a thread and a connection of its own, so it holds up no other
order.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import psycopg
from psycopg_pool import PoolTimeout

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Pool
from brewctl.delivery.orders import store
from brewctl.delivery.orders.acceptance import NewOrder
from brewctl.delivery.orders.store import CommitFailedError, KeyHeldError, TooLateError
from brewctl.proto.orders_pb2 import Order

logger = log.get(__name__)

_WARN_EVERY_S = 10.0


class Submission(Protocol):
    """An order to write. One of `on_created` and `on_failed` is called once, in any thread."""

    new: NewOrder

    def left_s(self) -> float:
        """Return how many seconds its caller still waits: at 0 it is not written any more."""

    def on_created(self, order: Order) -> None:
        """Take the committed order: this one, or the first one of its idempotency key."""

    def on_failed(self, error: Exception) -> None:
        """Take the reason why it failed. Nothing was written; after CommitFailedError that is not known."""


class Teller(Protocol):
    """Passes results to submissions. Never raises."""

    def created(self, submission: Submission, order: Order) -> None:
        """Call `on_created`: the order is committed."""

    def failed(self, submission: Submission, error: Exception) -> None:
        """Call `on_failed`: the order is not written, or that is not known."""

    def again(self, submission: Submission) -> None:
        """Put the order into the next batch."""


@dataclass(slots=True, eq=False)
class _Try:
    submission: Submission
    doubtful: bool  # whether its batch may have written it
    held: bool = False
    at_work: bool = False
    told: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[str, str] | None:
        return key_of(self.submission.new)


def key_of(new: NewOrder) -> tuple[str, str] | None:
    """Return the unique key of an order, its tenant and idempotency key; None where it has no idempotency key."""
    return None if new.idempotency_key is None else (new.tenant_id, new.idempotency_key)


class Alone:
    """Writes single orders, with up to `alone_threads` threads and as many connections of `pool`."""

    def __init__(self, settings: Settings, pool: Pool, teller: Teller, *, notify: Callable[[], None]) -> None:
        """`notify` is called after each commit. The pool's sessions must have create_lock_s as their lock_timeout."""
        limits = settings.limits
        self._settings = settings
        self._limits = limits
        self._pool = pool
        self._teller = teller
        self._notify = notify
        self._threads = ThreadPoolExecutor(limits.alone_threads, thread_name_prefix="alone")
        self._most_held = max(1, limits.alone_threads // 2)
        self._lock = threading.Lock()
        self._fresh: deque[_Try] = deque()
        self._held: deque[_Try] = deque()
        self._held_at_work = 0
        # By idempotency key: one order of the key is being tried, and these wait until that one has ended.
        self._behind: dict[tuple[str, str], list[_Try]] = {}
        self._warning = log.Seldom(logger, "orders_held", every_s=_WARN_EVERY_S)

    def has_key_of(self, new: NewOrder) -> bool:
        """Whether an order of the same key is tried here: a batch with another one would wait for the same lock."""
        return bool(self._behind) and key_of(new) in self._behind

    def join(self, submission: Submission) -> None:
        """Let a new order wait behind the one of its key; the order fails where `held_orders` wait already."""
        key = key_of(submission.new)
        with self._lock:
            behind = self._behind.get(key) if key else None
            full = sum(map(len, self._behind.values())) >= self._limits.held_orders
            if behind is not None and not full:
                behind.append(_Try(submission, doubtful=False))
        if behind is None:
            self._teller.again(submission)
        elif full:
            self._teller.failed(submission, KeyHeldError("another transaction holds the idempotency key: retry later"))

    def submit(self, submission: Submission, *, doubtful: bool) -> None:
        """Try an order that its batch did not write; `doubtful`: that is not known."""
        each = _Try(submission, doubtful)
        with self._lock:
            if each.key in self._behind:
                self._behind[each.key].append(each)
                return
            if each.key:
                self._behind[each.key] = []
            self._fresh.append(each)
        self._threads.submit(self._step)

    def go(self, work: Callable[[], None]) -> None:
        """Run other work for orders in one of the threads; it may use a connection of the same pool."""
        self._threads.submit(work)

    def end_late(self) -> None:
        """Fail the waiting orders whose callers' time is up, unless a thread works on them. To be called regularly."""
        for each in self._waiting():
            if each.submission.left_s() <= 0:
                self._tell(each, TooLateError(), at_work=False)

    def close(self) -> None:
        """Start no more work, and don't wait for what runs."""
        self._threads.shutdown(wait=False)

    def _waiting(self) -> list[_Try]:
        if not (self._fresh or self._held or self._behind):
            return []
        with self._lock:
            return [*self._fresh, *self._held, *(each for behind in self._behind.values() for each in behind)]

    def _step(self) -> None:
        with self._lock:
            if self._fresh:
                each = self._fresh.popleft()
            elif self._held and self._held_at_work < self._most_held:
                each = self._held.popleft()
                self._held_at_work += 1
            else:
                return  # the thread that ends a try of a held order starts the next one
            each.at_work = True
        was_held = each.held
        try:
            self._try(each)
        except Exception as error:  # noqa: BLE001 - the order gets the error, and the thread goes on
            self._finish(each, error)
        finally:
            if was_held:
                with self._lock:
                    self._held_at_work -= 1
                    more = bool(self._held)
                if more:
                    self._threads.submit(self._step)

    def _try(self, each: _Try) -> None:
        if each.told:
            self._finish(each, TooLateError())
            return
        limits, new, left_s, began = self._limits, each.submission.new, each.submission.left_s, time.monotonic()
        # A first try that takes longer than a batch may is cancelled, and tried again as a held one.
        statement_s = left_s() if each.held else limits.create_batch_s
        try:
            wait_s = min(limits.database_wait_s, max(0.0, left_s()))
            order = database.ask(
                self._pool,
                lambda connection: store.create(
                    connection, new, topic=self._settings.topic, left_s=left_s, statement_s=statement_s
                ),
                wait_s=wait_s,
            )
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
            if left_s() > 0:
                self._hold(each, began)
            else:
                self._finish(each, error)
        except PoolTimeout as error:
            self._finish(each, error)
            if wait_s >= limits.database_wait_s:
                # The others have waited for a connection as long: they would get none either.
                for other in self._waiting():
                    if other.since <= began:
                        self._tell(other, error, at_work=False)
        else:
            self._finish(each, order)

    def _hold(self, each: _Try, began: float) -> None:
        """Put an order at the end of the held ones, to be tried again."""
        pause_s = self._limits.create_lock_s - (time.monotonic() - began)
        if each.held and pause_s > 0:
            time.sleep(pause_s)  # a lock refused without a wait, as by NOWAIT in a trigger, must not be a busy loop
        with self._lock:
            first = not each.held
            each.held, each.at_work = True, False
            self._held.append(each)
        self._warning.warn(
            orders=len(self._waiting()), hint="another transaction holds a lock: pg_stat_activity shows which"
        )
        if first:
            self._threads.submit(self._step)

    def _finish(self, each: _Try, end: Order | Exception) -> None:
        self._tell(each, end, at_work=True)
        if not each.key:
            return
        with self._lock:
            behind = [other for other in self._behind.pop(each.key, ()) if not other.told]
            # The key is still locked by another transaction: the next order of the key takes the place.
            still_held = bool(behind) and each.held and isinstance(end, TooLateError | psycopg.errors.QueryCanceled)
            if still_held:
                head, *others = behind
                head.held = True
                self._behind[each.key] = others
                self._held.append(head)
        if still_held:
            self._threads.submit(self._step)
            return
        for other in behind:
            if other.doubtful:
                self.submit(other.submission, doubtful=True)
            else:
                self._teller.again(other.submission)

    def _tell(self, each: _Try, end: Order | Exception, *, at_work: bool) -> None:
        with self._lock:
            if each.told or each.at_work is not at_work:
                return
            each.told = True
        if not isinstance(end, Exception):
            self._notify()
            self._teller.created(each.submission, end)
        elif each.doubtful and isinstance(end, TooLateError | psycopg.Error):
            said = CommitFailedError(log.reason(end) if str(end) else "no answer in time")
            said.__cause__ = end
            self._teller.failed(each.submission, said)
        else:
            self._teller.failed(each.submission, end)
