"""Cancels on their way to PostgreSQL: each in a transaction of its own, in threads that nothing else uses.

    first try ─► half of the threads ──row is locked─► the other half: retried until the caller's deadline ──► told

So a transaction that has locked one order's row does not delay reads, nor for long the cancels of other orders. A
second cancel of an order that is known to be locked goes to the other half at once.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Pool
from brewctl.delivery.orders import cancellation
from brewctl.delivery.orders.cancellation import Cancellation
from brewctl.proto.orders_pb2 import CancelResponse
from brewctl.roles.order.call import Call

logger = log.get(__name__)

Told = Callable[["CancelResponse | Exception | None"], None]


class Cancelling:
    """Cancels orders in `cancelling_threads` threads, with as many connections of `pool` at most."""

    def __init__(self, settings: Settings, pool: Pool, *, notify: Callable[[], None]) -> None:
        """Call `notify` after each commit. The pool's sessions must wait no longer than create_lock_s for a lock."""
        self._settings = settings
        self._limits = settings.limits
        self._pool = pool
        self._notify = notify
        lane = max(1, settings.limits.cancelling_threads // 2)
        self._first = ThreadPoolExecutor(lane, thread_name_prefix="cancelling")
        self._held = ThreadPoolExecutor(lane, thread_name_prefix="cancelling-held")
        self._lock = threading.Lock()
        self._held_orders: set[str] = set()  # whose cancels wait for a lock; removed when one of these ends
        self._held_up = log.Seldom(logger, "cancel_held")

    def submit(self, wish: Cancellation, call: Call, told: Told) -> None:
        """Cancel an order for a call. `told` is called with the answer, None for an unknown order, or the error."""
        with self._lock:
            lane = self._held if wish.order_id in self._held_orders else self._first
        lane.submit(self._try, wish, call, told)

    def shutdown(self) -> None:
        """End the threads. Cancels that no thread has begun are dropped: their callers wait no more."""
        for lane in (self._first, self._held):
            lane.shutdown(wait=False, cancel_futures=True)

    def _try(self, wish: Cancellation, call: Call, told: Told) -> None:
        began = time.monotonic()
        try:
            answer, written = database.ask(
                self._pool,
                lambda connection: cancellation.cancel(
                    connection, wish, topic=self._settings.topic, left_s=call.left_s
                ),
                wait_s=min(self._limits.database_wait_s, call.left_s()),
            )
        except psycopg.errors.LockNotAvailable as error:
            if call.left_s() > 0:
                self._again(wish, call, told, began)
                return
            self._tell(wish, call, told, error)
        except Exception as error:  # noqa: BLE001 - the caller gets it, and the thread goes on
            self._tell(wish, call, told, error)
        else:
            self._tell(wish, call, told, answer)
            if written:
                self._notify()

    def _again(self, wish: Cancellation, call: Call, told: Told, began: float) -> None:
        self._held_up.warn(
            order_id=wish.order_id, hint="another transaction holds the order's row: pg_stat_activity shows which"
        )

        with self._lock:
            self._held_orders.add(wish.order_id)

        def later() -> None:
            # A lock may be refused at once, as by NOWAIT in a trigger: no retry in a hot loop.
            time.sleep(max(0.0, began + self._limits.create_lock_s - time.monotonic()))
            self._try(wish, call, told)

        try:
            self._held.submit(later)
        except RuntimeError as error:  # shut down meanwhile
            self._tell(wish, call, told, error)

    def _tell(self, wish: Cancellation, call: Call, told: Told, end: CancelResponse | Exception | None) -> None:
        call.guarded(lambda: told(end))
        with self._lock:
            self._held_orders.discard(wish.order_id)
