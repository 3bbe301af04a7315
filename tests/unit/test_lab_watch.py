"""What the lab makes of its samples: how long nothing went on, and how long it took to catch up."""

from types import SimpleNamespace
from typing import cast

import pytest

from brewctl.config import Settings
from brewctl.lab import chaos
from brewctl.lab.history import Act, Sample
from brewctl.lab.result import Result
from brewctl.lab.stage import Stage
from brewctl.lab.watch import Watch

LOAD_END_S = 5.0


def sample(at_s: float, orders: int, reserved: int, notified: int, *, unpublished: int = 0, parked: int = 0) -> Sample:
    return Sample(at_s, orders, unpublished, {"reservations": reserved, "notifications": notified}, parked)


def watched(*orders_reservations_notifications: tuple[int, int, int]) -> Watch:
    """A watch that has looked once a second."""
    watch = Watch(Settings())
    for second, (orders, reserved, notified) in enumerate(orders_reservations_notifications, start=1):
        watch.samples.append(
            sample(float(second), orders, reserved, notified, unpublished=orders - min(reserved, notified))
        )
    return watch


@pytest.mark.parametrize(
    ("samples", "standstill_s"),
    [
        # All goes on, then all is done.
        ([(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (5, 5, 5), (5, 5, 5), (5, 5, 5), (5, 5, 5)], 1.0),
        # Nothing waits, but no order is accepted though the load goes on.
        ([(1, 1, 1), (1, 1, 1), (1, 1, 1), (4, 4, 4), (5, 5, 5), (5, 5, 5)], 3.0),
        # One of the consumers does nothing.
        ([(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 1), (5, 5, 5), (5, 5, 5)], 4.0),
        ([(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 4), (5, 1, 5), (5, 5, 5)], 5.0),
        # Never caught up.
        ([(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 4), (5, 1, 5), (5, 1, 5), (5, 1, 5)], 6.0),
        ([], 0.0),
    ],
)
def test_a_standstill_is_of_any_role(samples: list[tuple[int, int, int]], standstill_s: float) -> None:
    assert watched(*samples).longest_standstill_s(LOAD_END_S) == standstill_s


def test_a_gap_without_samples_is_a_standstill() -> None:
    watch = watched((1, 1, 1), (2, 2, 2))
    watch.samples.append(sample(9.0, 3, 3, 3))
    assert watch.longest_standstill_s(LOAD_END_S) == 7.0


@pytest.mark.parametrize(("at_s", "done"), [(9.9, False), (10.1, True)])
def test_what_was_seen_before_the_last_order_ends_no_wait(
    monkeypatch: pytest.MonkeyPatch, at_s: float, done: bool
) -> None:
    monkeypatch.setattr(chaos, "_CATCH_UP_S", 0.2)
    watch = Watch(Settings())
    watch.samples.append(sample(at_s, 5, 5, 5))
    result = Result("any")
    stage = cast("Stage", SimpleNamespace(while_waiting=[]))
    plan = chaos.Plan(orders=5, rate=1.0, seed=1, session_s=6.0)
    play = chaos._Play(Settings(), stage, plan, result, Act("any", "any"), watch, lambda _at_s, _text: None)
    monkeypatch.setattr(Watch, "now_s", property(lambda _watch: 10.0))
    play._catch_up()
    assert (result.findings == []) is done


def test_catching_up_begins_when_all_is_healed() -> None:
    watch = watched((9, 9, 9), (9, 1, 9), (9, 2, 9), (9, 8, 9))
    assert watch.catch_up_s(2.0, backlog=1) == 2.0
    assert watch.catch_up_s(2.0, backlog=0) is None
