"""Binds a busy process to one core, because its threads take turns.

Python runs one thread at a time. If the next thread waits on another core, each turn costs an interrupt there and cold
caches: under load that is more than the work itself (docs/performance.md has the figures). So a busy process keeps to
one core, and moves when other processes load that core. It runs under SCHED_BATCH, sched(7): a woken thread can't run
before the thread that woke it releases the interpreter, so it need not interrupt that one. An idle process is unbound.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
# Shares of a core: the use above which a process counts as busy, and how much freer a better core must be.
_BUSY = 0.5
_FREER = 0.3
_STAT = Path("/proc/stat")


def keep_to_one_core(stop: threading.Event) -> None:
    """Bind this process to the best core while it is busy, until `stop` is set.

    Only waits for `stop` if there is a single core, or no way to bind. An error is logged and ends the binding, nothing
    else, because the binding only saves time.
    """
    try:
        _keep_to_one_core(stop)
    except Exception as error:  # noqa: BLE001 - such as a /proc that is not as in proc(5)
        logger.info("affinity given up: %r", error)
    stop.wait()


def _keep_to_one_core(stop: threading.Event) -> None:
    cores = allowed()
    if len(cores) <= 1 or not _STAT.exists():
        return
    chosen: int | None = None
    before, spent_s, at = busy_ticks(), time.process_time(), time.monotonic()
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    try:
        while not stop.wait(_LOOK_EVERY_S * random.uniform(0.8, 1.2)):  # noqa: S311 - two processes must not move as one
            # A cpuset or taskset(1) may have changed the allowed cores. While bound, we only see a change to our own.
            granted = allowed()
            if chosen is None or granted != {chosen}:
                if chosen is not None:
                    _bind(granted, None)
                cores, chosen = granted, None
            now, now_spent_s, now_at = busy_ticks(), time.process_time(), time.monotonic()
            passed_s = now_at - at
            # Some containers show cores that are not ours, or ours under other numbers.
            shown = cores & now.keys() & before.keys()
            loads = {core: (now[core] - before[core]) * tick_s / passed_s for core in shown}
            own = (now_spent_s - spent_s) / passed_s
            # The loads must include what this process used. Otherwise these are not the cores that it runs on.
            told = len(loads) > 1 and sum(loads.values()) > own / 2
            best = choose(loads, own=own, chosen=chosen) if told else None
            if best != chosen:
                chosen = best
                _bind(cores, chosen)
            before, spent_s, at = now, now_spent_s, now_at
    finally:
        if chosen is not None:
            _bind(cores, None)


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Keep to one core while the block runs."""
    over = threading.Event()
    keeping = threading.Thread(target=keep_to_one_core, args=(over,), name="affinity")
    keeping.start()
    try:
        yield
    finally:
        over.set()
        keeping.join()


def choose(loads: Mapping[int, float], *, own: float, chosen: int | None) -> int | None:
    """Return the core to bind to, None for no binding. `loads`: each core's load; `own`: this process's, in cores."""
    if own < _BUSY / (1 if chosen is None else 2):
        return None
    others = dict(loads)
    if chosen is not None:
        others[chosen] = max(0.0, others[chosen] - own)
    best = min(others, key=others.__getitem__)
    return chosen if chosen is not None and others[chosen] < others[best] + _FREER else best


def allowed() -> set[int]:
    """Return the cores that this process may use; none if the system can't tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def busy_ticks() -> dict[int, int]:
    """Return how long each core has been busy since the boot, in clock ticks: proc_stat(5)."""
    ticks = {}
    for line in _STAT.read_text("ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)
            ticks[int(name.removeprefix("cpu"))] = user + nice + system + irq + softirq + steal
    return ticks


def _bind(cores: set[int], chosen: int | None) -> None:
    """Bind every thread of this process to the chosen core, or unbind them. New threads inherit the binding.

    Raises OSError if this thread can't be bound: then no other thread is.
    """
    where = cores if chosen is None else {chosen}
    before, after = os.SCHED_OTHER, os.SCHED_BATCH
    if chosen is None:
        before, after = after, before
    os.sched_setaffinity(0, where)
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended, or we have no right to bind it
            os.sched_setaffinity(int(thread.name), where)
            if os.sched_getscheduler(int(thread.name)) == before:  # any other policy was set on purpose
                os.sched_setscheduler(int(thread.name), after, os.sched_param(0))
