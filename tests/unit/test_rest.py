"""How long a member that has read everything rests: three times what its work cost, and not very long."""

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(rest, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def test_a_rest_is_three_times_what_the_work_since_the_last_one_cost(clock: SimpleNamespace) -> None:
    pause, stop = Rest(1.0), Stop(clock)
    pause.take(stop)
    assert stop.waits == [], "nothing was done"
    pause.worked(0.01)
    pause.worked(0.02)
    pause.take(stop)
    pause.worked(0.01)
    pause.take(stop)
    assert stop.waits == [0.09, 0.03]


def test_it_counts_from_the_end_of_the_work_and_after_a_longer_pause_nothing_waits(clock: SimpleNamespace) -> None:
    pause, stop = Rest(1.0), Stop(clock)
    pause.worked(0.01)
    clock.s += 0.02
    pause.take(stop)
    pause.worked(0.01)
    clock.s += 0.03
    pause.take(stop)
    pause.take(stop)
    assert stop.waits == [0.01]


def test_it_has_a_bound(clock: SimpleNamespace) -> None:
    pause, stop = Rest(0.025), Stop(clock)
    pause.worked(30.0)
    pause.take(stop)
    assert stop.waits == [0.025]


def test_a_stop_ends_it() -> None:
    pause, stop = Rest(3600.0), threading.Event()
    pause.worked(3600.0)
    stop.set()
    pause.take(stop)
