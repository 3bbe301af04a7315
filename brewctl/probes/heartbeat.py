"""Whether the threads of a process move: each loop says so at each turn, and whoever wants to know looks.

All waits of a loop are bounded, those for a server too. So a loop that has not moved for longer than all of them
together is stuck, whatever its servers do.
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
    """What a thread does again and again."""

    def __init__(self, name: str, *, within_s: float) -> None:
        """It is to move once in `within_s` at least, unless it rests."""
        self.name = name
        self._within_s = within_s
        self._moved_at = math.inf
        self._dead = False
        with _lock:
            _loops.add(self)

    def beat(self) -> None:
        """Say that it moves."""
        self._moved_at = time.monotonic()

    def rest(self) -> None:
        """Say that it waits for something that may never come."""
        self._moved_at = math.inf

    def __enter__(self) -> Self:
        """Begin, in the thread that it is of."""
        self.beat()
        _here.loop = self
        return self

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        """End. One that is left by an exception is dead."""
        self.rest()
        _here.loop = None
        if error:
            self._dead = True
            _dead.append(self)

    @property
    def moves(self) -> bool:
        """Whether it is at work, or was when it last said so."""
        return self._moved_at < math.inf

    @property
    def trouble(self) -> str:
        """Say why it does not move, if it does not."""
        if self._dead:
            return f"{self.name} has ended by an error"
        still_s = time.monotonic() - self._moved_at
        if still_s <= self._within_s:
            return ""
        return f"{self.name} has not moved for {still_s:.0f} s, and {self._within_s:.0f} s is the longest it may take"


def beat() -> None:
    """Say that the loop of this thread moves, from within a library that has it wait."""
    if one := getattr(_here, "loop", None):
        one.beat()


# Nobody else holds them any more.
_dead: list[Loop] = []


def troubles() -> list[str]:
    """Say of each loop that is stuck or dead why."""
    with _lock:
        loops = list(_loops)
    return sorted(trouble for each in loops if (trouble := each.trouble))


def names() -> list[str]:
    """Name the loops of this process."""
    with _lock:
        return sorted(each.name for each in _loops if each.moves)
