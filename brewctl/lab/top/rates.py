"""The growth rates of the counters over the last looks."""

from collections import defaultdict, deque
from collections.abc import Sequence

from brewctl.lab.top.snapshot import Snapshot

_KEPT = 300
_SMOOTHED = 3  # looks that a shown rate is the mean of, as batches make single ones jump


class Rates:
    """The growth of each counter between looks, per second; also of the dead letters."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot. Counters of a server that is away are left out, as they are old."""
        if (now := snapshot.counters) and "postgres" not in snapshot.troubles:
            for name, value in now.growing().items():
                if value is not None:
                    self._grow(name, value, snapshot.at_s)
            self._history["unpublished"].append(now.unpublished)
        if snapshot.dead_letters is not None and "kafka" not in snapshot.troubles:
            self._grow("dead letters", snapshot.dead_letters, snapshot.at_s)

    def _grow(self, name: str, value: int, at_s: float) -> None:
        if name in self._before:
            then_s, before = self._before[name]
            # A counter that fell, because its table was emptied, has rate 0.
            self._history[name].append(max(0.0, (value - before) / (at_s - then_s)))
        self._before[name] = at_s, value

    def now(self, name: str) -> float:
        """Return the mean rate of the last looks, per second."""
        last = [*self._history[name]][-_SMOOTHED:]
        return sum(last) / len(last) if last else 0.0

    def history(self, name: str) -> Sequence[float]:
        """Return the rates so far; for `unpublished` its values."""
        return [*self._history[name]]
