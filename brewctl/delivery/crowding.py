"""Measures how busy the machine is, so that publishers and consumers rest while calls need the processor: `rest`."""

import contextlib
import os
import time

from brewctl import affinity
from brewctl.throttling import Throttling

_LOOK_EVERY_S = 0.25
# Up to this share of busy time a thread hardly waits for a processor: crowding is 0, and grows to 1 from there.
_ROOMY = 0.5


class Crowding:
    """Measures at most four times a second. Not thread-safe."""

    def __init__(self) -> None:
        """Begin to measure the cores that this process may use now.

        It may bind itself to one of them later: all of them still count.
        """
        self._allowed = affinity.allowed()
        self._at, self._computed_s, self._ticks = time.monotonic(), time.process_time(), self._ticks_now()
        self._throttling = Throttling()
        self._share = 0.0

    def share(self) -> float:
        """Return 0 on an idle machine, up to 1 where this process fills a core, or all processes fill all cores.

        Python runs one thread of a process at a time, so that one core is all it can fill. Where the system shows no
        other processes, this one alone counts. A CPU limit, such as a container's, that was reached in half of its
        periods counts as 0.5, whatever the cores do.
        """
        now = time.monotonic()
        if (passed_s := now - self._at) >= _LOOK_EVERY_S:
            computed_s, ticks = time.process_time(), self._ticks_now()
            full = (computed_s - self._computed_s) / passed_s
            if cores := ticks.keys() & self._ticks.keys():
                busy = sum(ticks[core] - self._ticks[core] for core in cores) / os.sysconf("SC_CLK_TCK")
                full = max(full, busy / (passed_s * len(cores)))
            crowded = min(1.0, max(0.0, (full - _ROOMY) / (1 - _ROOMY)))
            self._share = max(crowded, self._throttling.share())
            self._at, self._computed_s, self._ticks = now, computed_s, ticks
        return self._share

    def _ticks_now(self) -> dict[int, int]:
        with contextlib.suppress(OSError, ValueError):
            ticks = affinity.busy_ticks()
            # In a container /proc may number the cores differently: then all of them count.
            return {core: spent for core, spent in ticks.items() if core in self._allowed} or ticks
        return {}
