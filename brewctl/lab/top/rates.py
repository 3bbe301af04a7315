"""How fast each counter grows: the last minutes of rates, one a look."""

from collections import defaultdict, deque
from collections.abc import Sequence

from brewctl.lab.top.snapshot import Snapshot

_KEPT = 300
_SMOOTHED = 3  # looks: one alone jumps by what a batch brings


class Rates:
    """How fast each counter grows from one look to the next, a second; the dead letters of Kafka are one, too."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def add(self, snapshot: Snapshot) -> None:
        """Take a look into account: what a server that was away said last says nothing of now."""
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
            # One that fell, as a table that was emptied does, grew by nothing.
            self._history[name].append(max(0.0, (value - before) / (at_s - then_s)))
        self._before[name] = at_s, value

    def now(self, name: str) -> float:
        """Return the rate of the last looks."""
        last = [*self._history[name]][-_SMOOTHED:]
        return sum(last) / len(last) if last else 0.0

    def history(self, name: str) -> Sequence[float]:
        """Return the rates so far; of `unpublished`, which has none, its values."""
        return [*self._history[name]]
