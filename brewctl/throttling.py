"""How often a CPU limit, such as a container's, stops this process.

A limit gives a control group so much CPU time in each period of, mostly, 0.1 s. A group that has used it up stands
still until the next period, though the cores around it may be idle: their load says nothing of that. The kernel
counts the periods, and those that ended so, in each group's cpu.stat: cgroups(7), and the kernel's
admin-guide/cgroup-v2 and scheduler/sched-bwc.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


class Throttling:
    """What the limits of this process's control groups do to it. Not for two threads at a time."""

    def __init__(self, groups: Path = _GROUPS, mounted: Path = _MOUNTED) -> None:
        """Begin to count, in this process's groups and in those around them, as far as they are to be seen."""
        found = {path: _periods(path) for path in _candidates(groups, mounted)}
        self._before = {path: periods for path, periods in found.items() if periods is not None}

    def share(self) -> float:
        """Return the share, 0 to 1, of the periods since the last call in which a limit was reached; 0 without one."""
        most = 0.0
        for path, (periods, throttled) in self._before.items():
            if (now := _periods(path)) is None:
                continue
            self._before[path] = now
            if now[0] > periods:
                most = max(most, (now[1] - throttled) / (now[0] - periods))
        return min(1.0, max(0.0, most))


def _candidates(groups: Path, mounted: Path) -> Iterator[Path]:
    """Yield where the cpu.stat of each group may be, from this process's own up to the root.

    Version 2 has one hierarchy, version 1 one for `cpu`. In a container its own group may be mounted as the root, under
    whatever path the host gave it.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in groups.read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            root = mounted
            if controllers:
                if "cpu" not in controllers.split(","):
                    continue
                root = next((each for each in (mounted / controllers, mounted / "cpu") if each.is_dir()), mounted)
            inner = PurePosixPath(path.lstrip("/"))
            yield from (root / group / "cpu.stat" for group in (inner, *inner.parents) if ".." not in group.parts)


def _periods(path: Path) -> tuple[int, int] | None:
    """Return how many periods there were, and how many with the limit reached; None where nobody counts them."""
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in path.read_text("ascii").splitlines())
        if "nr_periods" in counts:
            return int(counts["nr_periods"]), int(counts["nr_throttled"])
    return None
