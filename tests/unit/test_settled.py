"""Which offsets a member commits, and when: seldom, and before too many records would come again."""

import dataclasses
import math
from types import SimpleNamespace

import pytest

from brewctl.delivery.broker import Record
from brewctl.delivery.inbox import settled_offsets
from brewctl.delivery.inbox.settled_offsets import SettledOffsets
from brewctl.limits import Limits

LIMITS = dataclasses.replace(Limits(), offset_commit_s=1.0, consume_records=10, redelivery_records=50)
NEVER = -math.inf


def records(first: int, count: int, *, partition: int = 0) -> list[Record]:
    return [Record("orders", None, None, [], partition, offset) for offset in range(first, first + count)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(settled_offsets, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def test_the_first_offsets_are_due_at_once_and_the_next_a_second_after_the_last_commit(clock: SimpleNamespace) -> None:
    position = SettledOffsets(LIMITS)
    assert position.due_in_s(NEVER) == math.inf, "nothing to commit"
    position.note(records(0, 1), new=1, assignment=1)
    assert position.due_in_s(NEVER) == 0
    position.take(assignment=1)
    assert position.due_in_s(clock.s) == math.inf
    position.note(records(1, 1), new=1, assignment=1)
    assert position.due_in_s(100.0) == 1.0
    clock.s += 0.75
    assert position.due_in_s(100.0) == 0.25
    clock.s += 5
    assert position.due_in_s(100.0) == 0


def test_the_last_record_of_each_partition_is_committed() -> None:
    position = SettledOffsets(LIMITS)
    position.note([*records(5, 3), *records(40, 2, partition=1)], new=5, assignment=1)
    position.note(records(8, 1), new=1, assignment=1)
    position.note([], new=0, assignment=1)
    assert {(each.partition, each.offset) for each in position.take(assignment=1)} == {(0, 8), (1, 41)}
    assert position.take(assignment=1) == [], "once"


def test_offsets_of_an_earlier_assignment_are_not_committed() -> None:
    position = SettledOffsets(LIMITS)
    position.note(records(0, 3), new=3, assignment=1)
    assert position.take(assignment=2) == []
    position.note(records(0, 3), new=3, assignment=2)
    position.note(records(7, 1, partition=1), new=1, assignment=3)
    assert position.take(assignment=3) == records(7, 1, partition=1)


def test_a_commit_is_due_before_more_records_than_the_bound_would_come_again(clock: SimpleNamespace) -> None:
    """Two batches of ten may be in the database beyond those that were noted."""
    position = SettledOffsets(LIMITS)
    position.note(records(0, 29), new=29, assignment=1)
    assert position.due_in_s(clock.s) == 1.0
    position.note(records(0, 30), new=1, assignment=1)
    assert position.due_in_s(clock.s) == 0
    position.take(assignment=1)
    position.note(records(30, 29), new=29, assignment=1)
    assert position.due_in_s(clock.s) == 1.0, "counted anew"


def test_where_the_bound_is_less_than_two_batches_each_is_committed(clock: SimpleNamespace) -> None:
    position = SettledOffsets(dataclasses.replace(LIMITS, redelivery_records=10))
    position.note(records(0, 1), new=1, assignment=1)
    assert position.due_in_s(clock.s) == 0
