"""Lanes: threads that call a downstream's handler for many keys at once, outside the consumer's loop.

    waiting_events ──lease the oldest of each key──► lanes: handler(event, tx) ──► done, put back, or parked
                          every process of the group does so; leases are renewed while a handler runs

A call that takes long holds up its own key alone: no batch, no other key, no partition waits for it.
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
from brewctl.probes.health import Finding

logger = log.get(__name__)

_OUTAGE = (*UNAVAILABLE, *SLOW)
# A look for due events that costs much is taken seldom: of the time, at most one part in so many.
_REST_PARTS = 4
_LOOK_S = 0.2  # how often one that waits looks for a stop
_STRAGGLERS_EVERY_S = 5.0
_ROW_CONNECTIONS = 4  # for statements that take a moment each


@contextlib.contextmanager
def lanes_of(
    settings: Settings, own: Settings, downstream: Downstream, *, node: str, tables: Collection[str] | None
) -> Iterator["Lanes | None"]:
    """Yield the lanes of a downstream, if it has some, with their connections to `own`, its database.

    Raises UnreachableError or BrewError where that is away, or lacks a table.
    """
    if not downstream.lanes:
        yield None
        return
    # A handler's statements may read any table as they like; ours are those of a queue.
    ready = setup.required(own, tables)
    size = min(_ROW_CONNECTIONS, downstream.lanes + 1)
    with (
        database.open_pool(own, name=f"{node} lanes", size=size, ready=ready, by_index=True) as rows,
        database.open_pool(own, name=node, size=downstream.lanes, ready=ready) as handlers,
    ):
        yield Lanes(settings, (rows, handlers), downstream, node=node)


class Lanes:
    """The lanes of one process. `run` is their dispatcher: it leases events, and hands each to a lane that is free."""

    def __init__(self, settings: Settings, pools: tuple[Pool, Pool], downstream: Downstream, *, node: str) -> None:
        """`pools`: of connections for the rows, and of those for handlers."""
        self._limits = settings.limits
        self._pool, handlers = pools
        self._downstream = downstream
        self._events = WaitingEvents(downstream.group, node, settings.limits)
        self._tally = LaneTally(Failures(downstream, most_in_a_row=settings.limits.failures_in_a_row))
        self._calls = LaneCalls(downstream, self._events, (self._pool, handlers), self._tally, settings)
        self._queue: queue.SimpleQueue[WaitingEvent | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._in_hand: dict[int, tuple[WaitingEvent, float]] = {}  # by id, and when it was leased
        self._wake = threading.Event()
        self._trouble = ""
        self._stragglers_at = 0.0
        self._again_last = False  # whether what was leased last had been put back before

    def wake(self) -> None:
        """Say that there may be events to handle."""
        self._wake.set()

    def work(self, taken: Work) -> Work:
        """Say what was done: what the inbox says of records, and of their effects what the lanes do."""
        done = self._tally
        trouble = done.stopped or self._trouble or taken.trouble or done.put_off_for or self._slow()
        return replace(taken, effects=done.effects, dead=taken.dead + done.parked, trouble=trouble)

    @property
    def lost(self) -> int:
        """How many calls have lost their lease."""
        return self._tally.lost

    def findings(self) -> Iterator[Finding]:
        """Say whether events are handled here."""
        if stopped := self._tally.stopped:
            yield Finding(ready=False, text=f"{stopped}; its lanes try one event at a time until one succeeds")
        elif self._trouble:
            yield Finding(ready=False, text=self._trouble)
        else:
            yield Finding(ready=True, text="its lanes handle events")

    def _slow(self) -> str:
        with self._lock:
            oldest = min(self._in_hand.values(), key=lambda held: held[1], default=None)
        if oldest and (runs_s := time.monotonic() - oldest[1]) > self._limits.session_s:
            return f"the call of {oldest[0].key} has run for {runs_s:.0f} s"
        return ""

    def run(self, stop: threading.Event) -> None:
        """Handle events until `stop` is set; calls in hand are finished then, as far as there is time.

        Outages of PostgreSQL are retried for ever. Raises BrewError where calls had to be given up.
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
            # Those that finish meanwhile free their lanes together.
            stop.wait(min(self._limits.publish_poll_s, _REST_PARTS * (time.monotonic() - began)))
            while not self._wake.wait(_LOOK_S) and not stop.is_set():
                if time.monotonic() > began + self._limits.publish_poll_s:
                    break

    def _pause_stopped(self, stop: threading.Event, backoff: Backoff) -> None:
        """Wait between two tries of a downstream that has stopped, and for the one that is tried."""
        while self._held() and self._tally.stopped and not stop.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            heartbeat.beat()
        if self._tally.stopped and backoff.pause() and not stop.is_set():
            hint = "mend what they have in common: its lanes try one event at a time until one succeeds"
            logger.error("downstream_stopped", reason=self._tally.stopped, hint=hint)

    def _lease(self) -> None:
        """Lease as many events as there are lanes free, and hand them over.

        Those that were put back come first, and have half of the lanes at most: new events do not wait for receivers
        that time out, and those that were put back do not wait until no new ones come. Where one event is tried at a
        time, in a single lane or of a downstream that has stopped, the two kinds take turns.
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
                self._calls(waiting)
            except Exception as error:  # a lane is never lost
                logger.exception("lane_failed", key=waiting.key, reason=str(error))
            finally:
                with self._lock:
                    del self._in_hand[waiting.id]
                self._wake.set()

    def _renew(self, over: threading.Event) -> None:
        """Renew the leases of the calls in hand, well before they end."""
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
