"""Tells whether the threads of a process move: each loop calls `beat` at each turn, and `troubles` names stuck loops.

All waits of a loop are bounded, also those for a server. So a loop that has not moved for longer than all its waits
together is stuck, whatever the servers do.
"""

import math
import threading
import time
import weakref
from typing import Self

_lock = threading.Lock()
_here = threading.local()  # the loop of this thread
_loops: "weakref.WeakSet[Loop]" = weakref.WeakSet()


class Loop:
    """A loop of one thread. Enter it as a context manager in that thread, and call `beat` at each turn."""

    def __init__(self, name: str, *, within_s: float) -> None:
        """`within_s`: the longest time between two beats, unless the loop rests."""
        self.name = name
        self._within_s = within_s
        self._moved_at = math.inf
        self._dead = False
        with _lock:
            _loops.add(self)

    def beat(self) -> None:
        """Note that the loop moves."""
        self._moved_at = time.monotonic()

    def rest(self) -> None:
        """Note that the loop waits without a bound, for work that may never come: it can't be stuck until it beats."""
        self._moved_at = math.inf

    def __enter__(self) -> Self:
        """Begin, in the loop's own thread."""
        self.beat()
        _here.loop = self
        return self

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        """End. A loop that an exception ended counts as dead."""
        self.rest()
        _here.loop = None
        if error:
            self._dead = True
            _dead.append(self)

    @property
    def moves(self) -> bool:
        """Whether it is at work, and not at rest."""
        return self._moved_at < math.inf

    @property
    def trouble(self) -> str:
        """Why the loop does not move; "" if it moves."""
        if self._dead:
            return f"{self.name} has ended by an error"
        still_s = time.monotonic() - self._moved_at
        if still_s <= self._within_s:
            return ""
        return f"{self.name} has not moved for {still_s:.0f} s, and {self._within_s:.0f} s is the longest it may take"


def beat() -> None:
    """Note that this thread's loop moves: for code that waits inside of a library, and does not have the Loop."""
    if one := getattr(_here, "loop", None):
        one.beat()


# Loops that an exception ended. `_loops` holds weak references, and their threads are gone.
_dead: list[Loop] = []


def troubles() -> list[str]:
    """Return one line for each loop that is stuck or dead."""
    with _lock:
        loops = list(_loops)
    return sorted(trouble for each in loops if (trouble := each.trouble))


def names() -> list[str]:
    """Return the names of the loops that are at work."""
    with _lock:
        return sorted(each.name for each in _loops if each.moves)
