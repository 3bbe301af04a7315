"""Measure order-service: the results of a load, whose memory does not grow with the number of calls."""

import copy
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from brewctl.client import UnknownOutcomeError
from brewctl.errors import BrewError, UnreachableError
from brewctl.lab.load.cancels import Cancel
from brewctl.lab.load.histogram import Histogram
from brewctl.lab.load.load import CallOutcome, Load, LoadCall

# A bound, as a server's messages may differ each time.
_MOST_REASONS = 20
_OTHERS = "other reasons"


@dataclass(frozen=True)
class LoadResult:
    """The results of all calls that began after the warm-up, including failed ones."""

    seconds: float  # from the end of the warm-up to the last answer
    count: int
    failures: dict[str, int]  # number by reason, the most frequent first
    retries: int  # calls that needed more than one try
    unsent: int  # calls of an open loop that were due at the end, but still waited for a caller
    latencies: Histogram  # from when a call was due to its answer, also of failed calls
    cancels: Histogram  # from a cancel's call to its answer, also of failed ones
    cancel_failures: dict[str, int]  # number by reason

    @property
    def failed(self) -> int:
        """The number of calls that failed after all retries."""
        return sum(self.failures.values())

    @property
    def not_cancelled(self) -> int:
        """The number of cancels that failed after all retries."""
        return sum(self.cancel_failures.values())

    @property
    def rate_per_s(self) -> float:
        """Orders created a second."""
        return (self.count - self.failed) / self.seconds if self.seconds else 0.0

    @property
    def mean_ms(self) -> float:
        """The mean latency; 0 without calls."""
        return self.latencies.mean_s * 1000

    @property
    def max_ms(self) -> float:
        """The longest latency; 0 without calls."""
        return self.latencies.max_s * 1000

    def percentile_ms(self, percent: float) -> float:
        """Return the latency that `percent` % of the calls do not exceed; 0 without calls."""
        return self.latencies.percentile_s(percent) * 1000


def together(results: Sequence[LoadResult]) -> LoadResult:
    """Combine the results of clients that measured at the same time."""
    failures: Counter[str] = Counter()
    cancel_failures: Counter[str] = Counter()
    latencies, cancels = Histogram(), Histogram()
    for result in results:
        failures.update(result.failures)
        cancel_failures.update(result.cancel_failures)
        latencies.add(result.latencies)
        cancels.add(result.cancels)
    return LoadResult(
        seconds=max((result.seconds for result in results), default=0.0),
        count=sum(result.count for result in results),
        failures=dict(failures.most_common()),
        retries=sum(result.retries for result in results),
        unsent=sum(result.unsent for result in results),
        latencies=latencies,
        cancels=cancels,
        cancel_failures=dict(cancel_failures.most_common()),
    )


class Measurement:
    """Records the calls of one load; its result is available at any time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reached = False
        self._seconds = 0.0
        self._failures: Counter[str] = Counter()
        self._retries = 0
        self._latencies = Histogram()
        self._cancels = Histogram()
        self._cancel_failures: Counter[str] = Counter()

    def record(self, call: LoadCall) -> None:
        """Count a call, unless it began in the warm-up.

        Raises the call's UnreachableError if no call was answered so far.
        """
        if not self._reached:
            if call.outcome is CallOutcome.FAILED and isinstance(call.error, UnreachableError):
                raise call.error
            self._reached = True
        if call.begun_s < 0:
            return
        with self._lock:
            self._latencies.record(call.latency_s)
            self._seconds = max(self._seconds, call.answered_s)
            self._retries += call.retried
            if call.error:
                _count(self._failures, call.error)

    def record_cancel(self, cancel: Cancel) -> None:
        """Count a cancel, unless it began in the warm-up."""
        if cancel.begun_s < 0:
            return
        with self._lock:
            self._cancels.record(cancel.latency_s)
            if cancel.error:
                _count(self._cancel_failures, cancel.error)

    @property
    def failed(self) -> int:
        """The number of calls so far that failed after all retries."""
        with self._lock:
            return self._failures.total()

    def result(self, *, unsent: int = 0) -> LoadResult:
        """Return the result so far."""
        with self._lock:
            return LoadResult(
                seconds=self._seconds,
                count=self._latencies.count,
                failures=dict(self._failures.most_common()),
                retries=self._retries,
                unsent=unsent,
                latencies=copy.deepcopy(self._latencies),
                cancels=copy.deepcopy(self._cancels),
                cancel_failures=dict(self._cancel_failures.most_common()),
            )


def _count(failures: Counter[str], error: BrewError) -> None:
    reason = error.reason if isinstance(error, UnknownOutcomeError) else error.message
    known = reason in failures or len(failures) < _MOST_REASONS
    failures[reason if known else _OTHERS] += 1


def measure(
    addresses: Sequence[str],
    *,
    concurrency: int = 64,
    rate: float | None = None,
    warmup_s: float = 1.0,
    duration_s: float | None = None,
    orders: int | None = None,
    connections: int = 1,
) -> LoadResult:
    """Load order-service for `duration_s` seconds or `orders` orders, and return the result.

    `connections`: to each address; the callers use them in turn. Raises UnreachableError if no order-service answers.
    """
    measurement = Measurement()
    load = Load(
        addresses,
        measurement.record,
        concurrency=concurrency,
        rate=rate,
        warmup_s=warmup_s,
        duration_s=duration_s,
        orders=orders,
        connections=connections,
    )
    load.run(threading.Event())
    return measurement.result(unsent=load.unsent)
