"""The life of an order, as data: ids and their beginnings, the steps of a timeline, what groups say of it."""

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from brewctl import overview
from brewctl.cli.trace import _Timeline
from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Group, GroupMember
from brewctl.delivery.topics import group_progress
from brewctl.errors import BrewError, UsageError
from brewctl.overview import consumer_groups
from brewctl.overview.effects import OrderEffect
from brewctl.overview.reading import bounds
from brewctl.overview.standing import KafkaView, OrderView, Standing, judge
from brewctl.overview.trace import DedupRow, Life, Order, Step, TracedEvent
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated

ORDER_ID = uuid.UUID("0199c2f4-1b2c-7000-8000-0123456789ab")
STORY = registry.configured(Settings())
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def at(milliseconds: float) -> datetime:
    return NOON + timedelta(milliseconds=milliseconds)


def event(outbox_id: int, **other: object) -> TracedEvent:
    values: dict[str, object] = {
        "topic": "t",
        "payload": OrderCreated(order_id=str(ORDER_ID), trace_id="4bf9").SerializeToString(),
        "type": "order.created",
        "created_at": at(1),
        "published_at": at(9),
        "publisher_node": "order-1",
        "kafka_partition": 3,
        "kafka_offset": 57,
        "failed_at": None,
        "failure": None,
        "attempts": 0,
    }
    return TracedEvent(outbox_id, **values | other)  # type: ignore[arg-type]


def cancel(outbox_id: int, **other: object) -> TracedEvent:
    payload = OrderCancelled(order_id=str(ORDER_ID), reason="out of beans").SerializeToString()
    return event(outbox_id, **{"type": "order.cancelled", "payload": payload, "created_at": at(40), **other})


def life(events: list[TracedEvent], *, committed_ms: float | None = 2) -> Life:
    committed_at = None if committed_ms is None else at(committed_ms)
    status = "ORDER_STATUS_CANCELLED" if any(each.cancels for each in events) else "ORDER_STATUS_NEW"
    effects = [OrderEffect("inventory", "inventory-2", at(7)), OrderEffect("notifications", "notification-1", at(31))]
    dedup = [
        DedupRow(effect.group, each.id, at(6 + number), 0, at(6))
        for effect in effects
        for number, each in enumerate(events)
    ]
    order = Order(ORDER_ID, "tea", "c1", 450, "EUR", status, NOON, committed_at)
    return Life(order, events, dedup, effects, [], STORY)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        (str(ORDER_ID), ORDER_ID, ORDER_ID),
        (f"order-{ORDER_ID}", ORDER_ID, ORDER_ID),
        (str(ORDER_ID).upper(), ORDER_ID, ORDER_ID),
        ("0199c2f4-1b", uuid.UUID("0199c2f4-1b" + "00-0000-0000-000000000000"),
         uuid.UUID("0199c2f4-1b" + "ff-ffff-ffff-ffffffffffff")),
        ("0", uuid.UUID(int=0), uuid.UUID("0" + "f" * 31)),
    ],
)  # fmt: skip
def test_the_beginning_of_an_id_is_a_range(text: str, first: uuid.UUID, last: uuid.UUID) -> None:
    assert bounds(text) == (first, last)


@pytest.mark.parametrize("text", ["", "order-", "x", "01 99", f"{ORDER_ID}0", "\u0661", "--", "01\x00"])
def test_what_is_no_beginning_of_an_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no order id"):
        bounds(text)


def test_steps_are_told_in_the_order_of_their_times() -> None:
    whole = life([event(5)])
    assert [(step.what, step.at) for step in whole.steps()] == [
        ("created", NOON),
        ("committed", at(2)),
        ("reserved", at(7)),  # by a consumer that was quicker than the mark
        ("published", at(9)),
        ("notified", at(31)),
    ]
    assert (whole.finished, whole.took_ms, whole.trace_id) == (True, 31, "4bf9")


def test_a_clock_that_is_ahead_does_not_move_the_creation() -> None:
    early = life([event(5)], committed_ms=-3).steps()
    assert [step.what for step in early[:2]] == ["created", "committed"]
    assert early[1].after_ms(early[0]) == -3


def test_what_looks_wrong_in_a_timeline_is_explained_once(capsys: pytest.CaptureFixture[str]) -> None:
    _Timeline(as_json=False).end(OrderView(life([event(5)], committed_ms=-3)))
    told, noted = capsys.readouterr()
    assert told.splitlines() == [
        f"order {ORDER_ID}  450 cents EUR  customer c1",
        "since 2026-01-02 12:00:00.000 UTC",
        "        0 ms  created    trace 4bf9, tenant tea",
        "       -3 ms  committed  with outbox row 5",
        "      +10 ms  reserved   by inventory-2, group inventory",
        "       +2 ms  published  by order-1 to t 3@57",
        "      +22 ms  notified   by notification-1, group notifications",
        "finished after 31 ms: published, reserved and notified once",
    ]
    assert [line.partition(":")[0] for line in noted.splitlines()] == [
        "less than 0 ms",
        "published is when its node knew of Kafka's acknowledgement",
    ]


def test_a_commit_whose_time_nobody_kept_is_not_made_up() -> None:
    assert [step.what for step in life([event(5)], committed_ms=None).steps()][1] == "written"


def test_a_second_event_has_a_write_of_its_own_and_no_second_effect() -> None:
    steps = life([event(5), event(6, created_at=at(3), published_at=at(10))]).steps()
    told = [(step.what, step.outbox_id) for step in steps if step.outbox_id == 6]
    assert told == [("written", 6), ("skipped", 6), ("skipped", 6), ("published", 6)]


def test_a_cancelled_order_has_two_events_and_both_effects_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    whole = life([event(5), cancel(6, published_at=at(45))], committed_ms=None)
    handled = [dataclasses.replace(row, processed_at=at(50)) if row.outbox_id == 6 else row for row in whole.dedup]
    whole = dataclasses.replace(whole, dedup=handled)
    assert (whole.finished, whole.took_ms) == (True, 10)
    _Timeline(as_json=False).end(OrderView(whole))
    told, _ = capsys.readouterr()
    assert told.splitlines()[6:] == [
        "      +22 ms  notified   by notification-1, group notifications",
        "       +9 ms  cancelled  outbox row 6: out of beans",
        "       +5 ms  published  by order-1 to t 3@57",
        "       +5 ms  released   by group inventory",
        "        0 ms  told       by group notifications",
        "finished 10 ms after its cancel: published, released and told",
    ]


def test_a_repeated_cancel_has_no_second_effect() -> None:
    steps = life([event(5), cancel(6), cancel(7)]).steps()
    assert [step.what for step in steps if step.outbox_id == 7] == ["skipped", "skipped", "published", "cancelled"]


def test_a_cancel_whose_payload_can_not_be_read_has_no_reason() -> None:
    assert "cancelled" in [step.what for step in life([event(5), cancel(6, payload=b"")]).steps()]


def test_an_order_is_not_finished_before_its_cancel_is() -> None:
    whole = life([event(5), cancel(6)])
    late = dataclasses.replace(
        whole, dedup=[row for row in whole.dedup if (row.group, row.outbox_id) != ("inventory", 6)]
    )
    assert not late.finished
    (standing,) = judge(Settings(), late, BrewError("kafka is away"))
    assert standing.text == "not released by group inventory, and how far it is can't be known: kafka is away"


@pytest.mark.parametrize("payload", [b"", b"\xff"])
def test_a_payload_that_can_not_be_read_has_no_trace(payload: bytes) -> None:
    unreadable = life([event(5, payload=payload)])
    assert unreadable.trace_id == ""
    assert unreadable.steps()[0] == Step(NOON, "created", "tenant tea")


def member(name: str, *partitions: int) -> GroupMember:
    return GroupMember(name, partitions, "127.0.0.1")


def node(name: str, *, silent_s: float) -> overview.NodeRow:
    return overview.NodeRow(name, "inventory", "h", 1, "", 0, 0, 0, 0, False, silent_s, 60)


NEXT = "not reserved by group inventory: it is next in partition 3"
READS, SILENT = node("inventory-1", silent_s=0.5), node("inventory-2", silent_s=9)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], Standing(f"{NEXT}, and the group has no member", "brewctl start inventory")),
        ([member("inventory-1", 3)], Standing(f"{NEXT}, which inventory-1 reads")),
        ([member("inventory-1", 0)], Standing(f"{NEXT}, which has no owner: the group is Stable")),
        (
            [member("inventory-2", 3)],
            Standing(
                f"{NEXT}, whose owner inventory-2 is silent: kafka gives it to another within 15 s",
                "brewctl start inventory",
            ),
        ),
        (
            [member("inventory-1", 0), member("inventory-2", 3)],
            Standing(f"{NEXT}, whose owner inventory-2 is silent: kafka gives it to another within 15 s"),
        ),
        ([member("of-another-version", 3)], Standing(f"{NEXT}, which of-another-version reads")),
    ],
)
def test_what_a_group_waits_for_is_who_owns_the_partition(members: list[GroupMember], said: Standing) -> None:
    notified = dataclasses.replace(
        life([event(5)]),
        dedup=[DedupRow("notifications", 5, NOON, 0, NOON)],
        effects=[OrderEffect("notifications", "notification-1", NOON)],
        nodes=[READS, SILENT],
    )
    group = Group("inventory", "Stable" if members else "Empty", "roundrobin", tuple(members))
    progress = group_progress.progress(group, {3: 57}, {3: (0, 58)})
    view = consumer_groups.GroupView(group.name, group.state, group.assignor, group.members, tuple(progress))
    kafka = KafkaView(frozenset("t"), {group.name: view}, [])
    assert judge(dataclasses.replace(Settings(), topic="t"), notified, kafka) == [said]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "it comes after 7 records in partition 3, and the group has no member"),
        ([member("inventory-1", 3)], "it comes after at most 7 records in partition 3, which inventory-1 reads"),
    ],
)
def test_a_member_may_be_further_than_the_offset_that_it_has_committed(members: list[GroupMember], said: str) -> None:
    group = Group("inventory", "Stable" if members else "Empty", "roundrobin", tuple(members))
    progress = group_progress.progress(group, {3: 50}, {3: (0, 58)})
    view = consumer_groups.GroupView(group.name, group.state, group.assignor, group.members, tuple(progress))
    kafka = KafkaView(frozenset("t"), {group.name: view}, [])
    notified = dataclasses.replace(
        life([event(5)]),
        dedup=[DedupRow("notifications", 5, NOON, 0, NOON)],
        effects=[OrderEffect("notifications", "notification-1", NOON)],
        nodes=[READS, SILENT],
    )
    (standing,) = judge(dataclasses.replace(Settings(), topic="t"), notified, kafka)
    assert standing.text == f"not reserved by group inventory: {said}"
