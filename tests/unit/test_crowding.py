"""How crowded it is: by this process's share of a core, and by what all cores do for anybody."""

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from brewctl import affinity
from brewctl.delivery import crowding
from brewctl.delivery.crowding import Crowding

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Machine:
    """Two cores, and a process."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.computed_s = 5.0
        self.busy = {0: 0.0, 1: 0.0}
        self.allowed = {0, 1}

    def ticks(self) -> dict[int, int]:
        return {core: int(seconds * TICKS_A_SECOND) for core, seconds in self.busy.items()}

    def work(self, *, passed_s: float, process: float, cores: tuple[float, float]) -> None:
        self.now_s += passed_s
        self.computed_s += process * passed_s
        for core, share in enumerate(cores):
            self.busy[core] += share * passed_s


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    clocks = {"monotonic": lambda: made.now_s, "process_time": lambda: made.computed_s}
    monkeypatch.setattr(crowding, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(affinity, "busy_ticks", made.ticks)
    monkeypatch.setattr(affinity, "allowed", lambda: made.allowed)
    return made


@pytest.mark.parametrize(
    ("process", "cores", "share"),
    [
        (0.1, (0.2, 0.2), 0.0),
        (0.5, (0.5, 0.5), 0.0),
        (0.9, (0.9, 0.1), 0.8),  # it fills a core: Python has no use for the other one
        (0.1, (0.9, 0.9), 0.8),  # others fill both
        (0.1, (1.0, 0.2), 0.2),
        (1.4, (1.0, 1.0), 1.0),
    ],
)
def test_it_is_crowded_where_a_core_is_full_of_this_process_or_all_cores_are_full(
    machine: Machine, process: float, cores: tuple[float, float], share: float
) -> None:
    measured = Crowding()
    assert measured.share() == 0
    machine.work(passed_s=1.0, process=process, cores=cores)
    assert measured.share() == pytest.approx(share, abs=0.03)


def test_it_looks_seldom(machine: Machine) -> None:
    measured = Crowding()
    machine.work(passed_s=0.1, process=1.0, cores=(1.0, 1.0))
    assert measured.share() == 0
    machine.work(passed_s=0.2, process=1.0, cores=(1.0, 1.0))
    assert measured.share() == pytest.approx(1.0, abs=0.1)


def fails(error: Exception) -> Callable[[], dict[int, int]]:
    def ask() -> dict[int, int]:
        raise error

    return ask


@pytest.mark.parametrize("error", [FileNotFoundError("no /proc"), PermissionError("not yours"), ValueError("odd line")])
def test_where_the_system_tells_of_no_core_this_process_alone_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(affinity, "busy_ticks", fails(error))
    measured = Crowding()
    machine.work(passed_s=1.0, process=0.75, cores=(1.0, 1.0))
    assert measured.share() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("allowed", "share"),
    [
        ({0}, 0.8),  # as by taskset, or in a container
        ({1}, 0.0),
        ({6, 7}, 0.2),  # what the container shows are not these: better all than none
        (set(), 0.2),  # the system does not say
    ],
)
def test_cores_that_this_process_may_not_use_are_no_room(machine: Machine, allowed: set[int], share: float) -> None:
    machine.allowed = allowed
    measured = Crowding()
    machine.allowed = {0}  # bound to one of them later, it still has the others
    machine.work(passed_s=1.0, process=0.1, cores=(0.9, 0.3))
    assert measured.share() == pytest.approx(share, abs=0.03)


def test_a_cpu_limit_that_is_reached_is_crowded_though_the_cores_are_idle(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowding, "Throttling", lambda: SimpleNamespace(share=lambda: 0.9))
    measured = Crowding()
    machine.work(passed_s=1.0, process=0.1, cores=(0.1, 0.1))
    assert measured.share() == pytest.approx(0.9)
