"""Measures how fast a client library alone reads records."""

import time
from collections.abc import Callable

from brewctl.errors import UnreachableError

WAIT_S = 30.0


def read_rate(topic: str, count: int, read_some: Callable[[], int]) -> float:
    """Call `read_some`, which returns how many records it read, until there are `count`; return how many a second.

    The first call with records is not counted. Raises UnreachableError after WAIT_S seconds.
    """
    read, uncounted, began = 0, 0, 0.0
    deadline = time.monotonic() + WAIT_S
    while read < count:
        read += read_some()
        if read and not uncounted:
            uncounted, began = read, time.perf_counter()
        if time.monotonic() > deadline:
            raise UnreachableError(f"kafka {topic} gave {read} of {count} records in {WAIT_S:g} s")
    return (read - uncounted) / (time.perf_counter() - began)
