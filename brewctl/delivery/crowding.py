"""How crowded it is: whether work in the background takes the processor from those who answer calls."""

import contextlib
import os
import time

from brewctl import affinity
from brewctl.throttling import Throttling

_LOOK_EVERY_S = 0.25
# Up to this share nobody waits for a processor for long; from there on it grows to 1.
_ROOMY = 0.5


class Crowding:
    """Looks four times a second at most. Not for two threads at a time."""

    def __init__(self) -> None:
        """Begin to measure, on the cores that this process may use now; until the first look it is not crowded.

        A busy one may bind itself to one of them later: the others are still there for it.
        """
        self._allowed = affinity.allowed()
        self._at, self._computed_s, self._ticks = time.monotonic(), time.process_time(), self._ticks_now()
        self._throttling = Throttling()
        self._share = 0.0

    def share(self) -> float:
        """Return 0 where there is room, up to 1 where this process fills a core, or everybody together all of them.

        Python runs one thread of a process at a time: one core is all that it can fill. Where the system does not tell
        of the others, this process alone counts. A CPU limit, such as a container's, that was reached in half of its
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
            # A container may show other cores than those it may use, under other numbers.
            return {core: spent for core, spent in ticks.items() if core in self._allowed} or ticks
        return {}
