"""The schedule of an open loop, by a clock of the test's own."""

import pytest

from brewctl.lab.load.pace import CallSchedule

SINCE = 1000.0


def dues(pace: CallSchedule, first: int, last: int) -> list[float]:
    """When these calls are due, after the beginning."""
    return [pace.due(number) - SINCE for number in range(first, last + 1)]


def test_a_call_is_due_at_its_number_by_the_rate() -> None:
    assert dues(CallSchedule(4, SINCE), 0, 4) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_higher_rate_begins_at_once() -> None:
    pace = CallSchedule(0.01, SINCE)  # the next call in 100 s
    assert dues(pace, 0, 1) == pytest.approx([0, 100])
    pace.set_rate(2, SINCE + 50)  # half of the call is due
    assert dues(pace, 1, 3) == pytest.approx([50.25, 50.75, 51.25])


def test_a_lower_rate_begins_at_once() -> None:
    pace = CallSchedule(10, SINCE)
    assert dues(pace, 0, 10)[-1] == pytest.approx(1)
    pace.set_rate(1, SINCE + 1)
    assert dues(pace, 11, 12) == pytest.approx([2, 3])


def test_what_was_due_before_a_change_stays_due() -> None:
    pace = CallSchedule(10, SINCE)
    pace.set_rate(1, SINCE + 0.5)
    assert dues(pace, 0, 7) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.5, 2.5])


def test_several_changes_before_anybody_asks() -> None:
    pace = CallSchedule(1, SINCE)
    pace.set_rate(100, SINCE + 1)
    pace.set_rate(2, SINCE + 2)
    assert pace.count(SINCE + 4) == 1 + 100 + 4
    assert dues(pace, 101, 103) == pytest.approx([2, 2.5, 3])
    assert pace.count(SINCE + 4) == 1 + 100 + 4
