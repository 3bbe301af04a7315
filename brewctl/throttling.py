"""How often a CPU limit, such as a container's, throttles this process.

A limit gives a control group some CPU time in each period, mostly of 0.1 s. A group that has used it up is stopped
until the next period, even if cores are idle, so the cores' load does not show it. The kernel counts all periods and
the throttled ones in each group's cpu.stat: cgroups(7), and the kernel's admin-guide/cgroup-v2 and scheduler/sched-bwc.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


class Throttling:
    """Measures the throttling of this process by its control groups. Not for two threads at a time."""

    def __init__(self, groups: Path = _GROUPS, mounted: Path = _MOUNTED) -> None:
        """Begin to count, in this process's control groups and their visible parents."""
        found = {path: _periods(path) for path in _candidates(groups, mounted)}
        self._before = {path: periods for path, periods in found.items() if periods is not None}

    def share(self) -> float:
        """Return the share (0 to 1) of the periods since the last call that were throttled; 0 without a limit."""
        most = 0.0
        for path, (periods, throttled) in self._before.items():
            if (now := _periods(path)) is None:
                continue
            self._before[path] = now
            if now[0] > periods:
                most = max(most, (now[1] - throttled) / (now[0] - periods))
        return min(1.0, max(0.0, most))


def _candidates(groups: Path, mounted: Path) -> Iterator[Path]:
    """Yield the possible paths of each group's cpu.stat, from this process's own group up to the root.

    Version 2 of cgroups has one hierarchy, version 1 a separate one for `cpu`. In a container the own group may be
    mounted as the root, while its path is the host's.
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
    """Return the numbers of periods and of throttled periods; None if they are not counted there."""
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in path.read_text("ascii").splitlines())
        if "nr_periods" in counts:
            return int(counts["nr_periods"]), int(counts["nr_throttled"])
    return None
