"""What the lab makes of its samples: how long nothing went on, and how long it took to catch up."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from brewctl.config import Settings
from brewctl.lab.chaos import chaos
from brewctl.lab.chaos.result import ScenarioResult
from brewctl.lab.chaos.stage import Stage
from brewctl.lab.record.history import Act, FlowSample
from brewctl.lab.record.watch import FlowWatch

LOAD_END_S = 5.0


def sample(
    at_s: float, orders: int, reserved: int, notified: int, *, unpublished: int = 0, parked: int = 0
) -> FlowSample:
    return FlowSample(at_s, orders, unpublished, {"reservations": reserved, "notifications": notified}, parked)


def watched(*orders_reservations_notifications: tuple[int, int, int]) -> FlowWatch:
    """A watch that has looked once a second."""
    watch = FlowWatch(Settings())
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
    watch = FlowWatch(Settings())
    watch.samples.append(sample(at_s, 5, 5, 5))
    watch._unread = dict.fromkeys(("inventory", "notifications"), (at_s, 0))
    result = ScenarioResult("any")
    stage = cast("Stage", SimpleNamespace(while_waiting=[]))
    plan = chaos.Plan(orders=5, rate=1.0, seed=1, session_s=6.0)
    play = chaos._ScenarioRun(Settings(), stage, plan, result, Act("any", "any"), watch, lambda _at_s, _text: None)
    monkeypatch.setattr(FlowWatch, "now_s", property(lambda _watch: 10.0))
    play._catch_up()
    assert (result.findings == []) is done


def test_catching_up_begins_when_all_is_healed() -> None:
    watch = watched((9, 9, 9), (9, 1, 9), (9, 2, 9), (9, 8, 9))
    assert watch.catch_up_s(2.0, backlog=1) == 2.0
    assert watch.catch_up_s(2.0, backlog=0) is None


LOYALTY = """
from brewctl import Event, OrderCreated, downstream

@downstream("loyalty")
def points(event: Event[OrderCreated], tx) -> None: ...

@downstream("paid", events=["payment.received"], done="SELECT order_id FROM payments")
def paid(event, tx) -> None: ...
"""
READ = {"inventory": (3.0, 0), "notifications": (3.0, 0)}


@pytest.mark.parametrize(
    ("seen", "unread", "settled"),
    [
        (sample(2.0, 5, 5, 5), READ, True),
        (sample(2.0, 5, 4, 5), READ, False),
        (sample(2.0, 5, 5, 5, unpublished=1), READ, False),
        (sample(2.0, 5, 5, 5, parked=1), READ, False),
        (sample(0.5, 5, 5, 5), READ, False),  # before the last order
        (sample(2.0, 5, 5, 5), READ | {"inventory": (3.0, 1)}, False),
        (sample(2.0, 5, 5, 5), READ | {"inventory": (1.5, 0)}, False),  # asked before all was published
        (sample(2.0, 5, 5, 5), {"inventory": (3.0, 0)}, False),  # the other group was not asked yet
    ],
)
def test_all_is_through_once_it_is_published_read_and_done(
    seen: FlowSample, unread: dict[str, tuple[float, int]], settled: bool
) -> None:
    watch = FlowWatch(Settings())
    watch.samples.append(seen)
    watch._unread = unread
    assert watch.has_settled(1.0) is settled


def test_what_a_downstream_does_not_count_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one without a `done` query its group must have read all; of one of other events the orders say nothing."""
    (tmp_path / "watched_loyalty.py").write_text(LOYALTY)
    monkeypatch.chdir(tmp_path)
    watch = FlowWatch(Settings(downstreams=("watched_loyalty:points", "watched_loyalty:paid")))
    watch.samples.append(FlowSample(2.0, 5, 0, {"loyalty": 3, "paid": 0}))
    assert not watch.has_settled(1.0)
    watch._unread = {"loyalty": (3.0, 0), "paid": (3.0, 0)}
    assert watch.has_settled(1.0)
    assert watch.has_flowed(3)
    assert not watch.has_flowed(4)
    assert watch.catch_up_s(0.0, backlog=1) is None
    assert watch.catch_up_s(0.0, backlog=2) == 2.0
