"""How long work in the background rests: by what it was measured to cost, on a fast machine and on a slow one."""

from types import SimpleNamespace

import pytest

from brewctl.delivery import rest
from brewctl.delivery.rest import Stopwatch


@pytest.mark.parametrize(
    ("took_s", "computed_s", "count", "rest_s"),
    [
        (0.004, 0.003, 0, 0.012),  # an idle machine
        (0.4, 0.3, 0, 1.2),  # one that is a hundred times slower
        (0.03, 0.03, 0, 0.09),  # a process that answers calls meanwhile
        (0.05, 0.002, 0, 0.016),  # Kafka is far away: nobody here was crowded out
        (5.0, 0.003, 0, 0.024),  # no answer in time
        (0.0, 0.0, 0, 0.0),
        (0.06, 0.06, 100, 0.09),  # many rows share the transaction: a rest saves less, and more of them wait
        (0.06, 0.06, 900, 0.018),
    ],
)
def test_the_rest_is_a_share_of_what_the_work_took_and_computed(
    monkeypatch: pytest.MonkeyPatch, took_s: float, computed_s: float, count: int, rest_s: float
) -> None:
    clocks = {"monotonic": 1000.0, "process_time": 50.0}
    monkeypatch.setattr(rest, "time", SimpleNamespace(**{name: lambda name=name: clocks[name] for name in clocks}))
    watch = Stopwatch()
    clocks["monotonic"] += took_s
    clocks["process_time"] += computed_s
    assert watch.took_s() == pytest.approx(took_s)
    assert watch.rest_s(count) == pytest.approx(rest_s)
