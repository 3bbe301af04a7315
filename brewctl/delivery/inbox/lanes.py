"""Runs lanes: threads that call a downstream's handler for many keys at once, outside the consumer's loop.

    waiting_events ──lease the oldest of each key──► lanes: handler(event, tx) ──► handled, put back, or parked
                          in every process of the group; leases are renewed while a handler runs

A long call delays only its own key: no batch, no other key and no partition waits for it. `waiting_events` has the
rows, `lane_call` makes one call.
"""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import UNAVAILABLE, Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.failures import SLOW, Failures
from brewctl.delivery.inbox.lane_call import LaneCalls, LaneTally
from brewctl.delivery.inbox.waiting_events import WaitingEvent, WaitingEvents
from brewctl.delivery.presence import Work
from brewctl.delivery.schema import setup
from brewctl.errors import BrewError
from brewctl.lifecycle import Backoff
from brewctl.probes import heartbeat
from brewctl.probes.health import Readiness

logger = log.get(__name__)

_OUTAGE = (*UNAVAILABLE, *SLOW)
# After a look for due events, rest for up to so many times as long as it took: a costly look is rare.
_REST_PARTS = 4
_LOOK_S = 0.2  # how often a wait looks for a stop
_STRAGGLERS_EVERY_S = 5.0
_ROW_CONNECTIONS = 4  # for short statements on waiting rows


@contextlib.contextmanager
def lanes_of(
    settings: Settings, own: Settings, downstream: Downstream, *, node: str, tables: Collection[str] | None
) -> Iterator["Lanes | None"]:
    """Yield the lanes of a downstream, if it has some, with connections to `own`, its database.

    Raises UnreachableError where the database is away, BrewError where it lacks a table.
    """
    if not downstream.lanes:
        yield None
        return
    # Only the lanes' own statements, those of a queue, are bound to use an index: a handler's may read any table.
    ready = setup.required(own, tables)
    size = min(_ROW_CONNECTIONS, downstream.lanes + 1)
    with (
        database.open_pool(own, name=f"{node} lanes", size=size, ready=ready, by_index=True) as rows,
        database.open_pool(own, name=node, size=downstream.lanes, ready=ready) as handlers,
    ):
        yield Lanes(settings, (rows, handlers), downstream, node=node)


class Lanes:
    """The lanes of one process. `run` is their dispatcher: it leases events, and hands each to a free lane."""

    def __init__(self, settings: Settings, pools: tuple[Pool, Pool], downstream: Downstream, *, node: str) -> None:
        """`pools`: the connections for waiting rows, and those for handlers."""
        self._limits = settings.limits
        self._pool, handlers = pools
        self._downstream = downstream
        self._events = WaitingEvents(downstream.group, node, settings.limits)
        self._tally = LaneTally(Failures(downstream, most_in_a_row=settings.limits.failures_in_a_row))
        self._calls = LaneCalls(downstream, self._events, (self._pool, handlers), self._tally, settings)
        self._queue: queue.SimpleQueue[WaitingEvent | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._in_hand: dict[int, tuple[WaitingEvent, float]] = {}  # leased events by id, and when each was leased
        self._wake = threading.Event()
        self._trouble = ""
        self._stragglers_at = 0.0
        self._again_last = False  # whether the last leased event had been put back before

    def wake(self) -> None:
        """Make the dispatcher look for events now."""
        self._wake.set()

    def work(self, taken: Work) -> Work:
        """Return the inbox's counts of records, with the effects and parked events of the lanes."""
        tally = self._tally
        trouble = tally.stopped or self._trouble or taken.trouble or tally.put_off_for or self._slow_call()
        return replace(taken, effects=tally.effects, dead=taken.dead + tally.parked, trouble=trouble)

    @property
    def lost(self) -> int:
        """How many calls lost their lease."""
        return self._tally.lost

    def findings(self) -> Iterator[Readiness]:
        """Yield for /readyz whether the lanes handle events."""
        if stopped := self._tally.stopped:
            yield Readiness(ready=False, text=f"{stopped}; its lanes try one event at a time until one succeeds")
        elif self._trouble:
            yield Readiness(ready=False, text=self._trouble)
        else:
            yield Readiness(ready=True, text="its lanes handle events")

    def _slow_call(self) -> str:
        with self._lock:
            oldest = min(self._in_hand.values(), key=lambda held: held[1], default=None)
        if oldest and (runs_s := time.monotonic() - oldest[1]) > self._limits.session_s:
            return f"the call of {oldest[0].key} has run for {runs_s:.0f} s"
        return ""

    def run(self, stop: threading.Event) -> None:
        """Handle events until `stop` is set, then wait for the calls in hand, for as long as the drain allows.

        Outages of PostgreSQL are retried for ever. Raises BrewError where a call did not end in time.
        """
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(over,), name="leases", daemon=True)
        renewing.start()
        loop = heartbeat.Loop("lanes", within_s=self._limits.longest_turn_s)
        try:
            with loop:
                self._dispatch(stop, loop.beat)
                self._drain(loop.beat)
        finally:
            over.set()
            for _ in self._threads:
                self._queue.put(None)

    def _dispatch(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        outage, stopped = Backoff(stop), Backoff(stop)
        while not stop.is_set():
            beat()
            self._wake.clear()
            began = time.monotonic()
            try:
                self._lease()
                self._park_stragglers()
            except _OUTAGE as error:
                self._trouble = f"postgres is away: {' '.join(str(error).split())}"
                if outage.pause() and not stop.is_set():
                    logger.warning("postgres_unavailable", reason=str(error), hint="events wait, and are leased again")
                continue
            outage.reset()
            self._trouble = ""
            if self._tally.stopped:
                self._pause_stopped(stop, stopped)
                continue
            stopped.reset()
            # Calls that end during this rest free their lanes for one look together.
            stop.wait(min(self._limits.publish_poll_s, _REST_PARTS * (time.monotonic() - began)))
            while not self._wake.wait(_LOOK_S) and not stop.is_set():
                if time.monotonic() > began + self._limits.publish_poll_s:
                    break

    def _pause_stopped(self, stop: threading.Event, backoff: Backoff) -> None:
        """Wait for the one call of a downstream that has stopped, then pause before the next."""
        while self._held() and self._tally.stopped and not stop.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            heartbeat.beat()
        if self._tally.stopped and backoff.pause() and not stop.is_set():
            hint = "mend what they have in common: its lanes try one event at a time until one succeeds"
            logger.error("downstream_stopped", reason=self._tally.stopped, hint=hint)

    def _lease(self) -> None:
        """Lease as many events as there are free lanes, and hand them over.

        Events that were put back come first, but have half of the lanes at most: so new events do not wait for failing
        receivers, nor retries for a gap between new events. With a single lane, or once the downstream has stopped,
        one event is tried at a time, and the two kinds take turns.
        """
        held = self._held()
        lanes, stopped = self._downstream.lanes, bool(self._tally.stopped)
        free = (0 if held else 1) if stopped else lanes - len(held)
        if free <= 0:
            return
        in_hand = [each.id for each in held]
        most_again = max(1, lanes // 2) - sum(each.again for each in held)
        again_first = not self._again_last if stopped or lanes == 1 else True
        with self._pool.connection() as connection:
            for again in (again_first, not again_first):
                if (limit := min(free, most_again) if again else free) > 0:
                    found = self._events.lease(connection, limit=limit, in_hand=in_hand, again=again)
                    free -= len(found)
                    self._again_last = again if found else self._again_last
                    for each in found:
                        self._hand_over(each)

    def _held(self) -> list[WaitingEvent]:
        with self._lock:
            return [each for each, _ in self._in_hand.values()]

    def _hand_over(self, waiting: WaitingEvent) -> None:
        with self._lock:
            self._in_hand[waiting.id] = waiting, time.monotonic()
            wanted = len(self._in_hand)
        if wanted > len(self._threads):
            name = f"lane-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._lane, name=name, daemon=True)  # a handler may never return
            self._threads.append(thread)
            thread.start()
        self._queue.put(waiting)

    def _lane(self) -> None:
        while waiting := self._queue.get():
            try:
                self._calls.handle(waiting)
            except Exception as error:  # the lane goes on
                logger.exception("lane_failed", key=waiting.key, reason=str(error))
            finally:
                with self._lock:
                    del self._in_hand[waiting.id]
                self._wake.set()

    def _renew(self, over: threading.Event) -> None:
        """Renew the leases of the calls in hand well before they run out, until `over` is set."""
        while not over.wait(self._limits.session_s / 5 * random.uniform(0.8, 1)):  # noqa: S311 - jitter, no secret
            if held := self._held():
                try:
                    with self._pool.connection() as connection:
                        self._events.renew(connection, held)
                except _OUTAGE as error:
                    logger.debug("leases_not_renewed", reason=str(error))

    def _park_stragglers(self) -> None:
        if time.monotonic() < self._stragglers_at:
            return
        with self._pool.connection() as connection:
            self._tally.note_parked(self._events.park_stragglers(connection))
        self._stragglers_at = time.monotonic() + _STRAGGLERS_EVERY_S

    def _drain(self, beat: Callable[[], None]) -> None:
        limits = self._limits
        deadline = time.monotonic() + max(0.0, limits.drain_s - 2 * limits.database_look_s)
        while self._held() and time.monotonic() < deadline:
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            beat()
        self._calls.stop()
        if held := self._held():
            several = "s" if len(held) > 1 else ""
            try:
                with (
                    self._pool.connection(limits.database_look_s) as connection,
                    connection.answering_within(limits.database_look_s),
                ):
                    self._events.give_back(connection, held)
            except _OUTAGE as error:
                logger.warning("leases_kept", reason=str(error), hint=f"they end within {limits.session_s:g} s")
            raise BrewError(
                f"{len(held)} call{several} in hand did not finish in time",
                hint="their events are handled again, with the same event.id",
            )
