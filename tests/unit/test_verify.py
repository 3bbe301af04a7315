"""What a verification says: few offenders, no foreign control characters, a verdict in one line."""

import dataclasses

import pytest

from brewctl.verify import Check, Facts, Verification

NUMBERS = {field.name: 0 for field in dataclasses.fields(Facts) if field.type in {int, float}}
FACTS = Facts(**NUMBERS, dropped_until=None, dead_letters={}, lag={}, unread={})

REMARKS = "2 orders, 3 repeats in the topic, 4 open dead letters, 1 events no longer in the topic"


def test_a_check_names_the_first_and_counts_all() -> None:
    check = Check("lost", "every published row is in the topic")
    for number in range(8):
        check.fail(f"outbox {number}")
    check.add(100, ["one more"])
    assert check.violations == 108
    assert check.offenders == [f"outbox {number}" for number in range(5)]


def test_foreign_text_moves_no_cursor() -> None:
    check = Check("wrong-key", "")
    check.fail("key is \x1b[2J\r\n\u202e☕")
    assert check.offenders == ["key is ?[2J???☕"]


@pytest.mark.parametrize(
    ("facts", "checks", "verdict"),
    [
        ({}, [], "nothing to verify: there is no order yet"),
        ({"orders": 2}, [], "every order was published, reserved and notified exactly once (2 orders)"),
        (
            {"orders": 2, "repeats": 3, "removed_events": 1, "dead_letters": {"inventory": {"open": 4, "dropped": 1}}},
            [],
            "every order was published, reserved and notified exactly once (" + REMARKS + ")",
        ),
        (
            {"orders": 4, "unpublished": 1, "unread": {"inventory": 2, "notifications": 0}, "oldest_s": 3.21},
            [],
            "no promise is broken; on the way: 1 unpublished, 2 unread by inventory, the oldest for 3.2 s (4 orders)",
        ),
        ({"orders": 2}, [Check("lost", "", 2, 1), Check("strangers", "", 2, 0)], "FAILED: lost 1"),
        (
            {},
            [Check("inventory-orphans", "", 9, 9), Check("strangers", "", 1, 1)],
            "FAILED: inventory-orphans 9, strangers 1",
        ),
    ],
)
def test_the_verdict(facts: dict[str, int], checks: list[Check], verdict: str) -> None:
    found = Verification(checks, dataclasses.replace(FACTS, **facts), ("reserved", "notified"))  # type: ignore[arg-type]
    assert found.verdict == f"verdict: {verdict}"
    assert found.ok is ("FAILED" not in verdict)


@pytest.mark.parametrize(
    ("done", "words"),
    [
        ((), "published exactly once"),
        (("reserved",), "published and reserved exactly once"),
        (("reserved", "done by loyalty"), "published, reserved and done by loyalty exactly once"),
    ],
)
def test_the_verdict_has_a_word_for_each_downstream(done: tuple[str, ...], words: str) -> None:
    found = Verification([], dataclasses.replace(FACTS, orders=2), done)
    assert found.verdict == f"verdict: every order was {words} (2 orders)"
