"""What keeps a partition of the outbox: each reason by itself, and what is wrong rather than too early."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from brewctl.delivery.retention.plan import Content, GroupOffsets, Known, Reason, Topic, judge, misplaced

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
ROWS = Content("orders", "order.created", 0, 3, last_offset=9, last_published=NOW - timedelta(days=9))
TOPIC = Topic("orders", ends={0: (10, 20), 1: (0, 0)}, keeps_ms=7 * 86_400_000)
GROUP = GroupOffsets("x-stock", "stock", frozenset({"order.created"}), {0: 10})
KNOWN = Known("orders", {"orders": TOPIC}, [GROUP], NOW)


def reasons(*contents: Content, topic: Topic = TOPIC, group: GroupOffsets = GROUP, **known: object) -> list[Reason]:
    asked = replace(KNOWN, topics={**KNOWN.topics, "orders": topic}, groups=[group])
    return judge(contents or (ROWS,), replace(asked, **known))  # type: ignore[arg-type]


def only(found: list[Reason]) -> Reason:
    (reason,) = found
    return reason


def test_rows_may_go_whose_records_are_gone_and_that_every_group_has_passed() -> None:
    assert reasons() == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (replace(ROWS, unpublished=2), "2 rows are not published yet"),
        (replace(ROWS, unpublished=2, set_aside=1), "1 row is set aside"),
    ],
)
def test_rows_that_are_not_published_keep_it(content: Content, text: str) -> None:
    found = reasons(content)
    assert text in [reason.text for reason in found]
    assert not any(reason.refused for reason in found)


def test_a_row_that_is_set_aside_is_not_counted_as_one_that_waits_too() -> None:
    assert len(reasons(replace(ROWS, unpublished=1, set_aside=1))) == 1


@pytest.mark.parametrize(
    ("keeps_ms", "todo"),
    [
        (-1, "the topic keeps its records for ever (retention.ms=-1)"),
        (7 * 86_400_000, "nothing: kafka removes them when they are 7 days old"),
        (5_400_000, "nothing: kafka removes them when they are 90 minutes old"),
        (1500, "nothing: kafka removes them when they are 1.5 s old"),
    ],
)
def test_records_that_are_still_there_keep_it(keeps_ms: int, todo: str) -> None:
    reason = only(reasons(topic=replace(TOPIC, ends={0: (9, 20)}, keeps_ms=keeps_ms)))
    assert reason.text == "topic orders still has records of it, up to 0@9; the first one there is 0@9"
    assert reason.todo.startswith(todo)
    assert not reason.refused


def test_a_compacted_topic_keeps_it() -> None:
    assert "compacted" in only(reasons(topic=replace(TOPIC, ends={0: (9, 20)}, compacted=True))).todo


def test_a_group_that_is_behind_keeps_it_and_is_named() -> None:
    still_there = replace(TOPIC, ends={0: (4, 20)})
    _, reason = reasons(topic=still_there, group=replace(GROUP, committed={0: 9}))
    assert reason.text == "group x-stock comes next to 0@9, and its last record is 0@9"
    assert reason.todo.startswith("start it: `brewctl start stock`")
    assert not reason.refused


def test_a_group_that_has_never_committed_keeps_it() -> None:
    reason = only(reasons(group=replace(GROUP, committed={})))
    assert reason.text == "group x-stock has never committed in partition 0 of the topic"


def test_a_group_that_takes_no_such_event_keeps_nothing() -> None:
    assert reasons(group=replace(GROUP, types=frozenset({"order.cancelled"}), committed={})) == []


def test_a_group_that_was_overtaken_is_refused() -> None:
    reason = only(reasons(group=replace(GROUP, committed={0: 5})))
    assert reason.refused
    assert reason.text.startswith("group x-stock was overtaken: it comes next to 0@5, and the first record is 0@10")
    assert "outbox republish --missing" in reason.todo


@pytest.mark.parametrize("ends", [{0: (0, 9)}, {1: (0, 5)}, {0: (0, 0)}])
def test_a_topic_that_was_made_anew_is_refused(ends: dict[int, tuple[int, int]]) -> None:
    reason, *_ = reasons(topic=replace(TOPIC, ends=ends))
    assert reason.refused
    assert reason.text.startswith("its last record was 0@9 in topic orders, whose partition 0 ")


def test_what_is_refused_is_said_first() -> None:
    first, *others = reasons(replace(ROWS, unpublished=1), group=replace(GROUP, committed={0: 5}))
    assert first.refused
    assert others


def test_a_topic_of_ones_own_that_is_not_there_keeps_it_until_it_is_said_to_be_gone() -> None:
    foreign = replace(ROWS, topic="loyalty")
    topics = {"orders": TOPIC, "loyalty": Topic("loyalty", there=False)}
    reason = only(judge([ROWS, foreign], replace(KNOWN, topics=topics)))
    assert reason.text == "topic loyalty of its rows is not there"
    assert "--topic-gone loyalty" in reason.todo
    assert not reason.refused
    assert judge([ROWS, foreign], replace(KNOWN, topics=topics, gone=frozenset({"loyalty"}))) == []


def test_records_of_a_topic_of_ones_own_keep_it() -> None:
    topics = {"orders": TOPIC, "loyalty": Topic("loyalty", ends={0: (3, 20)})}
    reason = only(judge([ROWS, replace(ROWS, topic="loyalty")], replace(KNOWN, topics=topics)))
    assert reason.text.startswith("topic loyalty still has records of it")


def test_the_story_s_topic_that_is_not_there_is_refused() -> None:
    assert only(reasons(topic=Topic("orders", there=False))).refused


@pytest.mark.parametrize(
    ("keeps_ms", "age", "stays"),
    [(7 * 86_400_000, 8, False), (7 * 86_400_000, 6, True), (-1, 4000, True)],
)
def test_rows_whose_place_is_not_known_are_judged_by_their_age(keeps_ms: int, age: int, stays: bool) -> None:
    older = Content("orders", "order.created", None, 3, unplaced=3, last_published=NOW - timedelta(days=age))
    found = reasons(older, topic=replace(TOPIC, keeps_ms=keeps_ms))
    assert bool(found) is stays
    assert all("published by an older version" in reason.text for reason in found)


def test_an_outbox_without_a_row_for_the_topic_is_another_one_s() -> None:
    reason = misplaced([replace(ROWS, topic="others")], "orders")
    assert reason is not None
    assert reason.refused
    assert reason.text == "no row of the outbox is for topic orders: its rows are for others"
    assert misplaced([replace(ROWS, topic="others"), ROWS], "orders") is None
    assert misplaced([], "orders") is None
