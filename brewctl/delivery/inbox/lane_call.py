"""Calls a downstream's handler for one waiting event, in a lane, and writes the result to its row."""

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from brewctl import log, metrics
from brewctl.config import Settings
from brewctl.delivery.database import UNAVAILABLE, BoundedConnection, Pool
from brewctl.delivery.database.lazy_transaction import lent_lazily
from brewctl.delivery.database.lent_transaction import HandlerError
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import traced_calls
from brewctl.delivery.inbox.batch import Tally
from brewctl.delivery.inbox.failures import SLOW, Failures, StoppedError, is_countable, reason_of
from brewctl.delivery.inbox.waiting_events import LeaseLostError, WaitingEvent, WaitingEvents
from brewctl.delivery.schema import no_partition
from brewctl.lifecycle import Backoff
from brewctl.metrics import RetryReason

logger = log.get(__name__)
Result = TypeVar("Result")


class LaneTally:
    """Counts what the lanes of one process have handled, parked and lost. Thread-safe."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._lock = threading.Lock()
        self.effects = self.parked = self.lost = 0
        self.put_off_for = ""  # why a handler last raised Later, if no event was handled since

    @property
    def stopped(self) -> str:
        """Return why the downstream has stopped; empty while it has not."""
        return self._failures.trouble

    def succeeded(self) -> None:
        """Count a handled event."""
        with self._lock:
            self.effects += 1
            self.put_off_for = ""
            self._failures.succeeded()

    def failed(self, waiting: WaitingEvent, error: Exception) -> int | None:
        """Note a failed try: see `Failures.failed`."""
        identity = waiting.outbox_id, waiting.event_id
        with self._lock:
            try:
                return self._failures.failed(identity, error, before=waiting.attempts)
            finally:
                self._failures.settled([identity])

    def put_off(self, why: str) -> None:
        """Note why a handler raised Later."""
        if why:
            self.put_off_for = why

    def note_parked(self, count: int) -> None:
        """Count parked events."""
        with self._lock:
            self.parked += count

    def note_lost(self) -> None:
        """Count a call that lost its lease."""
        with self._lock:
            self.lost += 1


class LaneCalls:
    """The calls of one downstream's handler. Thread-safe."""

    def __init__(
        self, downstream: Downstream, rows: WaitingEvents, pools: tuple[Pool, Pool], done: LaneTally, settings: Settings
    ) -> None:
        """`pools`: the connections for waiting rows, and those for the handler."""
        assert downstream.handler is not None
        self._downstream, self._handler = downstream, downstream.handler
        self._events, self._tally, self._limits = rows, done, settings.limits
        self._around = traced_calls.around(settings, downstream)
        self._pool, self._handlers = pools
        self._over = threading.Event()  # set when the process ends
        self._metrics = metrics.inbox(downstream.group)

    def stop(self) -> None:
        """End the waits for PostgreSQL: the results of the calls in hand are no longer written."""
        self._over.set()

    def handle(self, waiting: WaitingEvent) -> None:
        """Handle an event: afterwards its row is gone, due later, or parked; or another process has leased it."""
        try:
            event = waiting.event(self._downstream)
            self._call_and_finish(waiting, event)
        except LeaseLostError:
            self._note_lost(waiting)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, SystemExit too
            failure = error if isinstance(error, Exception) else HandlerError(f"the handler raised {error!r}")
            with contextlib.suppress(LeaseLostError):
                return self._put_back_or_park(waiting, failure)
            self._note_lost(waiting)
        else:
            self._tally.succeeded()
            self._metrics.records(Tally(), Tally(effects=1))
            self._metrics.delivered([event], 1)

    def _call_and_finish(self, waiting: WaitingEvent, event: Event[Any]) -> None:
        with lent_lazily(self._handlers) as lending:
            with self._around(waiting):
                self._handler(event, lending.tx)
            lending.end()
            if lending.connection:
                self._events.finish(lending.connection, waiting)
        if not lending.connection:
            # The call was made and is not repeated: only this write is retried.
            self._persist(lambda connection: self._events.finish(connection, waiting))

    def _put_back_or_park(self, waiting: WaitingEvent, error: Exception) -> None:
        """Put an event whose call failed back for another try, or park it. Raises LeaseLostError."""
        logger.debug("effect_failed", outbox_id=waiting.outbox_id, exc_info=error)
        if isinstance(error, Later):
            self._metrics.retried(RetryReason.LATER)
            self._tally.put_off(error.why)
            self._put_back(waiting, pause_s=error.seconds, failure=error.why or None)
            return
        if no_partition.table_of(error) == "outbox":  # to which the handler adds events
            self._persist(lambda connection: no_partition.make(connection, "outbox"))
            self._put_back(waiting, pause_s=0)
            return
        if not is_countable(error):  # PostgreSQL is away, or slow
            self._metrics.retried(RetryReason.POSTGRES)
            self._put_back(waiting, pause_s=self._pause(0))
            return
        reason = reason_of(error)
        try:
            tries = self._tally.failed(waiting, error)
        except StoppedError:
            self._metrics.retried(RetryReason.STOPPED)
            self._put_back(waiting, pause_s=self._pause(0), failure=reason)
            return
        if tries is None:
            self._metrics.retried(RetryReason.EFFECT)
            self._put_back(waiting, pause_s=self._pause(waiting.attempts), failure=reason, counted=True)
            return
        parked = self._persist(lambda connection: self._events.park(connection, waiting, reason, attempts=tries))
        self._tally.note_parked(parked or 0)
        self._metrics.records(Tally(), Tally(parked=parked or 0))
        place = f"{waiting.partition}@{waiting.offset}"
        logger.error("parked", key=waiting.key, record=place, reason=reason, hint="see `brewctl dlq list`")

    def _put_back(
        self, waiting: WaitingEvent, *, pause_s: float, failure: str | None = None, counted: bool = False
    ) -> None:
        self._persist(
            lambda connection: self._events.put_back(
                connection, waiting, pause_s=pause_s, failure=failure, counted=counted
            )
        )

    def _persist(self, write: Callable[[BoundedConnection], Result]) -> Result | None:
        """Write to the waiting rows, retrying while PostgreSQL is away. Return None once the process ends."""
        backoff = Backoff(self._over)
        while not self._over.is_set():
            try:
                with self._pool.connection() as connection:
                    return write(connection)
            except (*UNAVAILABLE, *SLOW) as error:
                if backoff.pause():
                    logger.warning("postgres_unavailable", reason=str(error), hint="its lane waits for it")
        return None

    def _note_lost(self, waiting: WaitingEvent) -> None:
        self._tally.note_lost()
        hint = "another process handles the event, with the same event.id"
        logger.warning("lease_lost", key=waiting.key, outbox_id=waiting.outbox_id, hint=hint)

    def _pause(self, attempts: int) -> float:
        ceiling = min(self._limits.lane_retry_s, self._limits.lane_retry_first_s * 2 ** min(attempts, 16))
        return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret
