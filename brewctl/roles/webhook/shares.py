"""How many calls are made for one customer at once: a receiver that is slow for one leaves the others their calls."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator

from brewctl import Later

_QUICK_S = 0.25  # calls that end within this are waited for: another event is no sooner at work than they are done
_LATER_S = (1.0, 3.0)


class Shares:
    """Of the calls of one node. For many threads."""

    def __init__(self, most: int) -> None:
        """Let `most` calls be made at once, a quarter of them for one customer, and half where nobody is named."""
        self._most = max(1, most // 4)
        self._most_unnamed = max(1, most // 2)
        self._began: dict[str, list[float]] = {}  # when the calls that are being made began, by customer
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, customer: str) -> Iterator[None]:
        """Make a call for a customer within the block. Raises Later where so many that take long are being made."""
        most = self._most if customer else self._most_unnamed
        with self._changed:
            while len(made := self._began.setdefault(customer, [])) >= most:
                if time.monotonic() > min(made) + _QUICK_S:
                    seconds = random.uniform(*_LATER_S)  # noqa: S311 - jitter, no secret
                    raise Later(seconds, f"the receiver is slow: {most} calls are being made for one customer")
                self._changed.wait(_QUICK_S)
            made.append(began := time.monotonic())
        try:
            yield
        finally:
            with self._changed:
                made.remove(began)
                if not made:
                    del self._began[customer]
                self._changed.notify_all()
