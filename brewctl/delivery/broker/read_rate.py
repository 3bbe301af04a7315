"""How fast records come out of a client library with nothing around it."""

import time
from collections.abc import Callable

from brewctl.errors import UnreachableError

WAIT_S = 30.0


def read_rate(topic: str, count: int, read_some: Callable[[], int]) -> float:
    """Read until `count` records have come, and return how many a second; `read_some` says how many it has read.

    The first that come are not counted. Raises UnreachableError where it takes longer than WAIT_S.
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
