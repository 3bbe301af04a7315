"""How long a topic keeps records: what is taken for a time, what is set for it, and which groups are late."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from brewctl.delivery import registry
from brewctl.delivery.broker import TopicSetting
from brewctl.delivery.topics import keeping
from brewctl.delivery.topics.group_progress import GroupProgress
from brewctl.delivery.topics.keeping import FOREVER_MS, Kept
from brewctl.doctor import Verdict
from brewctl.doctor import keeping as doctor
from brewctl.errors import UsageError
from brewctl.overview import consumer_groups
from brewctl.overview.consumer_groups import GroupView

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
AS_BROKERS_SAY = {
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "segment.ms": "604800000",
    "segment.bytes": "1073741824",
    "message.timestamp.type": "CreateTime",
}


def kept(**changed: str) -> Kept:
    """Take settings of a topic, `retention_ms="-1"` for retention.ms."""
    changed = {name.replace("_", "."): value for name, value in changed.items()}
    return Kept({name: TopicSetting(value, "broker") for name, value in (AS_BROKERS_SAY | changed).items()})


@pytest.mark.parametrize(
    ("text", "found_ms", "written"),
    [
        ("7", 7 * DAY_MS, "7d"),
        ("7d", 7 * DAY_MS, "7d"),
        ("36h", 36 * HOUR_MS, "36h"),
        ("48h", 48 * HOUR_MS, "2d"),
        ("90m", 90 * 60_000, "90m"),
        ("1s", 1000, "1s"),
        ("36500d", 36_500 * DAY_MS, "36500d"),
        ("forever", FOREVER_MS, "forever"),
    ],
)
def test_a_time_is_read_and_written(text: str, found_ms: int, written: str) -> None:
    assert keeping.parse(text) == found_ms
    assert keeping.words(found_ms) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0s",
        "-3d",
        "-1",
        "1y2",
        "1.5d",
        "7D",
        " 7d",
        "seven",
        "Forever",
        "٣d",
        "36501d",
        "9" * 5000,
        "99999999d",
    ],
)
def test_what_is_no_time_to_keep_records(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        keeping.parse(text)
    assert "use " in raised.value.hint
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    ("keep_ms", "segment_ms"),
    [
        (7 * DAY_MS, DAY_MS),
        (30 * DAY_MS, 102 * HOUR_MS),
        (3650 * DAY_MS, 7 * DAY_MS),
        (HOUR_MS, 8 * 60_000),
        (60_000, 10_000),
        (1, 10_000),
    ],
)
def test_segments_end_soon_enough_for_the_time_to_be_true(keep_ms: int, segment_ms: int) -> None:
    assert keeping.wanted(keep_ms) == {
        "retention.ms": str(keep_ms),
        "retention.bytes": "-1",
        "cleanup.policy": "delete",
        "segment.ms": str(segment_ms),
    }


def test_for_ever_is_not_ended_by_size_and_needs_no_segments_of_its_own() -> None:
    assert keeping.wanted(FOREVER_MS) == {
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "cleanup.policy": "delete",
        "segment.ms": None,
    }


def test_what_is_in_force() -> None:
    assert kept().keep_ms == 7 * DAY_MS
    assert kept(retention_ms="-1").keep_ms == FOREVER_MS
    assert kept(cleanup_policy="compact").keep_ms == FOREVER_MS
    assert list(kept().problems()) == []
    assert [
        text.partition(":")[0] for text in kept(cleanup_policy="compact,delete", retention_bytes="1").problems()
    ] == [
        "cleanup.policy is compact,delete",
        "retention.bytes is 1",
    ]


def test_a_group_is_late_by_the_age_of_what_it_has_not_read_and_not_by_its_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its records: of offsets 0 to 9 the first five are 8 days old, the next three 4 days, the others new."""

    def offsets_at(_topic: str, at_ms: int) -> dict[int, int]:
        age_ms = time.time() * 1000 - at_ms
        return {0: 5 if age_ms > 6 * DAY_MS else 8}

    def view(name: str, position: int) -> GroupView:
        progress = GroupProgress(0, owner="", committed=position, first=0, end=10)
        return GroupView(name, "Empty", "", (), (progress,))

    views = [view("inventory", 3), view("notifications", 5), view("lazy", 8)]
    monkeypatch.setattr(consumer_groups, "groups", lambda _admin, _settings: views)
    admin: Any = SimpleNamespace(offsets_at=offsets_at)
    settings: Any = SimpleNamespace(topic="orders", downstreams=())
    monkeypatch.setattr(registry, "started_as", lambda _settings, name: name)
    first, second = doctor._late(admin, settings, 7 * DAY_MS)
    assert (first.check, first.verdict) == ("keeping-inventory", Verdict.FAIL)
    assert first.found == "2 unread records are older than 7d, and may be removed at any moment"
    assert (second.check, second.verdict) == ("keeping-notifications", Verdict.WARN)
    assert second.found == "3 unread records are older than 84h, and will be removed after 7d"
    assert "brewctl start notifications" in second.mend
