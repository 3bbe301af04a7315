"""How fast each counter grows: the last minutes of rates, one a look."""

from collections import deque
from collections.abc import Sequence

from brewctl.lab.top.snapshot import Counters, Snapshot

_KEPT = 300
GROWING = ("orders", "published", "reservations", "notifications")
_SMOOTHED = 3  # looks: one alone jumps by what a batch brings


class Rates:
    """The rates of the counters that grow, from one look to the next, in their unit a second."""

    def __init__(self) -> None:
        self._before: tuple[float, Counters] | None = None
        self._rates: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in GROWING}
        self._unpublished: deque[float] = deque(maxlen=_KEPT)

    def add(self, snapshot: Snapshot) -> None:
        """Take a look into account. A counter that fell, as a table that was emptied does, grew by nothing."""
        if (now := snapshot.counters) is None or "postgres" in snapshot.troubles:
            return
        if self._before:
            at_s, before = self._before
            passed_s = snapshot.at_s - at_s
            for name, rates in self._rates.items():
                rates.append(max(0.0, (getattr(now, name) - getattr(before, name)) / passed_s))
        self._unpublished.append(now.unpublished)
        self._before = snapshot.at_s, now

    def now(self, name: str) -> float:
        """Return the rate of the last looks."""
        last = [*self._rates[name]][-_SMOOTHED:]
        return sum(last) / len(last) if last else 0.0

    def history(self, name: str) -> Sequence[float]:
        """Return the rates so far; of `unpublished`, which has none, its values."""
        return [*(self._unpublished if name == "unpublished" else self._rates[name])]
