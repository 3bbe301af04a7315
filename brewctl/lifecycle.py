"""How a process runs several things at once, and how these end together.

After oklog/run: the first actor to return stops the rest, and the runner returns when all have.
"""

import contextlib
import gc
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from brewctl.errors import DrainTimeoutError

Actor = Callable[[], None]

_SLICE_S = 0.2
# Longer than any single try takes.
_FORGOTTEN_S = 60.0
_GARBAGE = 100_000


class Sleeper(Protocol):
    """An object that waits for other things than an event, and can be woken from another thread."""

    def wakeup(self) -> object:
        """End the current wait at once, or else the next one."""


_sleepers: "weakref.WeakKeyDictionary[threading.Event, weakref.WeakSet[Sleeper]]" = weakref.WeakKeyDictionary()
_sleepers_lock = threading.Lock()


def wake_at(event: threading.Event, sleeper: Sleeper) -> None:
    """Wake a sleeper when the event is set, at once if it is set already. Keeps no reference to sleepers.

    An event has no callbacks, so one thread waits for each event, for all of its sleepers.
    """
    with _sleepers_lock:
        known = event in _sleepers
        sleepers = _sleepers.setdefault(event, weakref.WeakSet())
        sleepers.add(sleeper)

    def wake() -> None:
        event.wait()
        with _sleepers_lock:
            awake = list(sleepers)
        for each in awake:
            each.wakeup()

    if event.is_set():
        sleeper.wakeup()
    if not known:
        threading.Thread(target=wake, name="waker", daemon=True).start()


def stop_at_end_of_input(stop: threading.Event) -> threading.Event:
    """Set `stop` when stdin ends: the process that holds its other end has closed it, or is gone.

    Return the event that the first byte on stdin sets.
    """
    told = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                told.set()
        stop.set()

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return told


def collect_garbage_rarely() -> None:
    """Let the garbage collector run less often, and skip the objects that exist now.

    A role makes and drops some hundred objects a record, hardly any in cycles: at Python's own threshold, made for
    small programs, a sixth of a consumer's time goes into looking through them (docs/performance.md).
    """
    gc.freeze()
    gc.set_threshold(_GARBAGE, 20, 50)


_begun: "weakref.WeakSet[threading.Event]" = weakref.WeakSet()


def has_begun(stop: threading.Event) -> bool:
    """Say whether `run_together` has started actors with this stop: from then on work may be in hand."""
    return stop in _begun


def run_together(actors: Mapping[str, Actor], stop: threading.Event, *, drain_timeout_s: float) -> None:
    """Run the actors in threads until `stop` is set or one returns, then wait for them all.

    Each actor must return soon after `stop` is set. Raises the first actor's exception;
    DrainTimeoutError where one still runs `drain_timeout_s` seconds after the stop.
    """
    failures: list[BaseException] = []

    def play(actor: Actor) -> None:
        try:
            actor()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failures.append(error)
        finally:
            stop.set()

    threads = [threading.Thread(target=play, args=(actor,), name=name) for name, actor in actors.items()]
    _begun.add(stop)
    for thread in threads:
        thread.start()
    # In slices: a signal that arrives just before the wait is seen only when the wait returns.
    while not stop.wait(_SLICE_S):
        pass
    deadline = time.monotonic() + drain_timeout_s
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        for thread in threads:
            thread.join(min(_SLICE_S, max(0.0, deadline - time.monotonic())))
    if stuck := [thread.name for thread in threads if thread.is_alive()]:
        message = f"{' and '.join(stuck)} did not stop within {drain_timeout_s:g} s"
        if failures:
            message = f"{failures[0]}; {message}"
        raise DrainTimeoutError(message, hint="what was not committed will be delivered again") from next(
            iter(failures), None
        )
    if failures:
        raise failures[0]


@contextlib.contextmanager
def beside(actors: Mapping[str, Actor], stop: threading.Event) -> Iterator[None]:
    """Run the actors in threads while the block runs; then set `stop` and wait until they have returned."""
    threads = [threading.Thread(target=actor, name=name) for name, actor in actors.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Backoff:
    """Growing, jittered pauses between tries of something that is retried for ever.

    Unlike a retry decorator's it outlives a success: work that succeeds for hours and then fails starts short
    again, while a server that accepts connections and refuses every request is not asked in a hot loop.
    A failure a minute after the last one is a new one, whether a success was noted between them or not.
    """

    def __init__(self, stop: threading.Event, *, first_s: float = 0.1, longest_s: float = 5.0) -> None:
        self._stop = stop
        self._first_s = first_s
        self._longest_s = longest_s
        self._tries = 0
        self._ended = time.monotonic()

    def pause(self) -> bool:
        """Wait before the next try, less once a stop is asked for. True where this try is worth a log line.

        Tries 1, 2, 4, 8 … are: an outage of ten minutes says so about ten times.
        """
        pause_s, worth_a_line = self.next()
        self._stop.wait(pause_s)
        return worth_a_line

    def next(self) -> tuple[float, bool]:
        """Note a failed try: how many seconds to wait before the next, and whether this one is worth a log line."""
        now = time.monotonic()
        if now > self._ended + _FORGOTTEN_S:
            self._tries = 0
        ceiling = min(self._longest_s, self._first_s * 2 ** min(self._tries, 16))
        pause_s = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret
        self._tries += 1
        self._ended = now + pause_s
        return pause_s, self._tries & (self._tries - 1) == 0

    def reset(self) -> None:
        """Note a success: the next pause is short again."""
        self._tries = 0


def wait_until(what: str, condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.1) -> None:
    """Poll `condition` until it holds; TimeoutError names `what` was still missing after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: still missing after {timeout_s:g} s")
        time.sleep(every_s)
