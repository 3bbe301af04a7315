"""How long work in the background rests: by what it was measured to cost, on a fast machine and on a slow one."""

import threading
from types import SimpleNamespace

import pytest

from brewctl.delivery import rest
from brewctl.delivery.rest import Rest


class Stop(threading.Event):
    """Notes how long was waited for it."""

    def __init__(self, clock: SimpleNamespace) -> None:
        super().__init__()
        self.clock = clock
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(round(timeout or 0, 6))
        self.clock.s += timeout or 0
        return False


def full() -> float:
    """All cores are busy."""
    return 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    now = SimpleNamespace(s=100.0, computed_s=7.0)
    monkeypatch.setattr(rest, "time", SimpleNamespace(monotonic=lambda: now.s, process_time=lambda: now.computed_s))
    return now


def test_a_rest_is_three_times_what_the_work_since_the_last_one_cost(clock: SimpleNamespace) -> None:
    pause, stop = Rest(most_s=1.0, crowding=full), Stop(clock)
    pause.take(stop)
    assert stop.waits == [], "nothing was done"
    pause.worked(0.01)
    pause.worked(0.02)
    pause.take(stop)
    pause.worked(0.01)
    pause.take(stop)
    assert stop.waits == [0.09, 0.03]


def test_it_counts_from_the_end_of_the_work_and_after_a_longer_pause_nothing_waits(clock: SimpleNamespace) -> None:
    pause, stop = Rest(most_s=1.0, crowding=full), Stop(clock)
    pause.worked(0.01)
    clock.s += 0.02
    pause.take(stop)
    pause.worked(0.01)
    clock.s += 0.03
    pause.take(stop)
    pause.take(stop)
    assert stop.waits == [0.01]


def test_it_has_a_bound(clock: SimpleNamespace) -> None:
    pause, stop = Rest(most_s=0.025, crowding=full), Stop(clock)
    pause.worked(30.0)
    pause.take(stop)
    assert stop.waits == [0.025]


def test_a_stop_ends_it() -> None:
    pause, stop = Rest(most_s=3600.0, crowding=full), threading.Event()
    pause.worked(3600.0)
    stop.set()
    pause.take(stop)


@pytest.mark.parametrize(
    ("took_s", "computed_s", "count", "rest_s"),
    [
        (0.004, 0.003, 0, 0.012),  # an idle machine
        (0.4, 0.3, 0, 1.2),  # one that is a hundred times slower
        (0.03, 0.03, 0, 0.09),  # a process that answers calls meanwhile
        (0.05, 0.002, 0, 0.016),  # Kafka is far away: nobody here was crowded out
        (5.0, 0.003, 0, 0.024),  # no answer in time
        (0.06, 0.06, 100, 0.09),  # many rows share the transaction: a rest saves less, and more of them wait
        (0.06, 0.06, 900, 0.018),
    ],
)
def test_without_a_bound_it_is_what_the_process_computed_that_bounds_it(
    clock: SimpleNamespace, took_s: float, computed_s: float, count: int, rest_s: float
) -> None:
    pause, stop = Rest(crowding=full), Stop(clock)
    for _ in range(2):
        clock.computed_s += 60.0  # between two looks: that is not the work's
        pause.take(stop)
        clock.computed_s += computed_s
        pause.worked(took_s, count=count)
        assert pause.last_s == pytest.approx(rest_s)
    pause.take(stop)
    assert stop.waits == pytest.approx([rest_s, rest_s])


@pytest.mark.parametrize(("crowding", "rest_s"), [(0.0, 0.005), (0.5, 0.0175), (1.0, 0.03)])
def test_it_is_short_where_nobody_waits_for_a_processor(clock: SimpleNamespace, crowding: float, rest_s: float) -> None:
    pause = Rest(crowding=lambda: crowding)
    clock.computed_s += 0.01
    pause.worked(0.01)
    assert pause.last_s == pytest.approx(rest_s)
