"""Limits the calls at once for one customer, so that a receiver that is slow for one does not delay the others."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator

from brewctl import Later

_QUICK_S = 0.25  # wait for calls that end within this: to put the event back would take as long
_LATER_S = (1.0, 3.0)


class Shares:
    """The calls that one node is making, by customer. Thread-safe."""

    def __init__(self, most: int) -> None:
        """`most`: the calls at once in all: a quarter of them for one customer, half for events that name none."""
        self._most = max(1, most // 4)
        self._most_unnamed = max(1, most // 2)
        self._began: dict[str, list[float]] = {}  # by customer, when each of the open calls began
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, customer: str) -> Iterator[None]:
        """Make a call for a customer within the block. Raises Later while too many slow ones are open."""
        most = self._most if customer else self._most_unnamed
        with self._changed:
            while len(calls := self._began.setdefault(customer, [])) >= most:
                if time.monotonic() > min(calls) + _QUICK_S:
                    seconds = random.uniform(*_LATER_S)  # noqa: S311 - jitter, no secret
                    raise Later(seconds, f"the receiver is slow: {most} calls are being made for one customer")
                self._changed.wait(_QUICK_S)
            calls.append(began := time.monotonic())
        try:
            yield
        finally:
            with self._changed:
                calls.remove(began)
                if not calls:
                    del self._began[customer]
                self._changed.notify_all()
