"""The batch that a `Consumption` has in the database: a thread applies it while the next one is read."""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from brewctl.delivery.broker import Record
from brewctl.delivery.inbox.batch import Batch


@dataclass
class InFlight:
    """A batch, and the try at it that is under way, or was the last one."""

    batch: Batch
    assignment: int  # the number of the assignment of partitions under which it was read
    attempt: Future[None]
    began_s: float = field(default_factory=time.monotonic)
    noted: Sequence[Record] = ()  # the records whose offsets were noted as settled

    def is_done(self, *, within_s: float) -> bool:
        """Wait up to `within_s` for the end of the try, and tell whether it has ended."""
        # At half the cost of `futures.wait`, which is made for several.
        with contextlib.suppress(TimeoutError):
            self.attempt.exception(within_s)
        return self.attempt.done()
