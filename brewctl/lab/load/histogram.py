"""A histogram of latencies, whose memory does not grow with their number.

It is log-linear, like HDR histograms: each power of two has the same number of buckets, so that the relative error is
constant. The library `hdrhistogram` needs setuptools at run time and has no wheels for Linux on ARM.
"""

import math

# Buckets for each power of two.
_BUCKETS = 256
# Shorter latencies count as this one, as zero has no logarithm.
_LOWEST_S = 1e-6


class Histogram:
    """Latencies in seconds. Percentiles are 0 to 0.4 % too high; count, mean and maximum are exact."""

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self._total_s = 0.0
        self._counts: dict[int, int] = {}

    def record(self, latency_s: float) -> None:
        """Count a latency. Not thread-safe."""
        fraction, exponent = math.frexp(max(latency_s, _LOWEST_S))  # 0.5 <= fraction < 1
        bucket = exponent * _BUCKETS + int((2 * fraction - 1) * _BUCKETS)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self._total_s += latency_s
        self.max_s = max(self.max_s, latency_s)

    def add(self, other: "Histogram") -> None:
        """Add another histogram's counts."""
        for bucket, count in other._counts.items():  # noqa: SLF001 - the same class
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        self._total_s += other._total_s  # noqa: SLF001
        self.max_s = max(self.max_s, other.max_s)

    @property
    def mean_s(self) -> float:
        """The mean; 0 if it is empty."""
        return self._total_s / self.count if self.count else 0.0

    def percentile_s(self, percent: float) -> float:
        """Return the latency that `percent` % of all do not exceed; 0 if it is empty."""
        wanted = math.ceil(round(percent * self.count / 100, 6))
        for bucket in sorted(self._counts):
            wanted -= self._counts[bucket]
            if wanted <= 0:
                exponent, step = divmod(bucket, _BUCKETS)
                return min(math.ldexp((1 + (step + 1) / _BUCKETS) / 2, exponent), self.max_s)
        return self.max_s
