"""The histogram: its error, its memory, and the rank of its percentiles."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewctl.lab.load.histogram import Histogram

ERROR = 1 + 1 / 256
PERCENTS = (0, 50, 90, 99, 99.9, 100)


def filled(latencies_s: list[float]) -> Histogram:
    histogram = Histogram()
    for latency_s in latencies_s:
        histogram.record(latency_s)
    return histogram


@given(st.lists(st.floats(1e-6, 1e5), min_size=1), st.sampled_from(PERCENTS))
def test_a_percentile_is_never_too_low_and_little_too_high(latencies_s: list[float], percent: float) -> None:
    exact = sorted(latencies_s)[max(0, math.ceil(percent * len(latencies_s) / 100) - 1)]
    assert exact <= filled(latencies_s).percentile_s(percent) <= exact * ERROR


@pytest.mark.parametrize(("percent", "rank"), [(50, 500), (90, 900), (99, 990), (99.9, 999), (100, 1000)])
def test_the_rank_of_a_percentile(percent: float, rank: int) -> None:
    # Each in a bucket of its own.
    latencies_s = [1.01**number for number in range(-500, 500)]
    exact = latencies_s[rank - 1]
    assert exact <= filled(latencies_s).percentile_s(percent) <= exact * ERROR


@given(st.lists(st.floats(0, 1e5), min_size=1))
def test_the_rest_is_exact(latencies_s: list[float]) -> None:
    histogram = filled(latencies_s)
    assert histogram.count == len(latencies_s)
    assert histogram.mean_s == pytest.approx(sum(latencies_s) / len(latencies_s))
    assert histogram.max_s == histogram.percentile_s(100) == max(latencies_s)


def test_memory_does_not_grow_with_the_count() -> None:
    chance = random.Random(1)
    histogram = filled([10 ** chance.uniform(-7, 3) for _ in range(100_000)])
    # A microsecond to 1000 s are 30 powers of two.
    assert len(histogram._counts) <= 30 * 256 + 1


def test_nothing() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.mean_s, histogram.max_s, histogram.percentile_s(99)) == (0, 0, 0, 0)
