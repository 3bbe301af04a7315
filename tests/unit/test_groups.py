"""How far a group is, where it can be sent, and how that looks."""

import io
import time

import pytest
from rich.console import Console

from brewctl.cli.groups import _drawn, _print
from brewctl.cli.groups_reset import _note_consequences, _target
from brewctl.delivery.broker import Group, GroupMember
from brewctl.delivery.repair.group_reset import Target, Where
from brewctl.delivery.topics.group_progress import GroupProgress, progress
from brewctl.errors import UsageError
from brewctl.overview.consumer_groups import GroupView

NOON_MS = 1_795_608_000_000  # 2026-11-25T12:00 UTC


@pytest.mark.parametrize(
    ("committed", "position"),
    [
        (12, 12),
        (10, 10),
        (20, 20),
        (None, 10),
        (9, 10),  # its records are no longer retained
        (21, 10),  # the topic was made anew
    ],
)
def test_a_consumer_goes_on_at_its_offset_or_at_the_first_record(committed: int | None, position: int) -> None:
    here = GroupProgress(0, "", committed, first=10, end=20)
    assert (here.position, here.lag) == (position, 20 - position)


def test_a_partition_has_its_owner_and_its_offset() -> None:
    group = Group("inventory", "Stable", "roundrobin", (GroupMember("inventory-1", (0,), "127.0.0.1"),))
    assert progress(group, {1: 3}, {1: (0, 5), 0: (0, 4)}) == [
        GroupProgress(0, "inventory-1", None, 0, 4, known=True),
        GroupProgress(1, "", 3, 0, 5, known=True),
    ]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("earliest", Target(Where.EARLIEST)),
        ("latest", Target(Where.LATEST)),
        ("0", Target(Where.OFFSET, 0)),
        ("20261125", Target(Where.OFFSET, 20261125)),
        ("2026-11-25T12:00Z", Target(Where.TIME, NOON_MS)),
        ("2026-11-25T14:00:00.5+02:00", Target(Where.TIME, NOON_MS + 500)),
        ("2026-11-25T07:00", Target(Where.TIME, NOON_MS)),
        ("1969-12-31T18:59:59.998", Target(Where.TIME, 0)),  # -2 would be Kafka's word for the earliest
    ],
)
def test_where_a_group_goes(monkeypatch: pytest.MonkeyPatch, text: str, target: Target) -> None:
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        assert _target(text) == target
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(("text", "ago_s"), [("-90s", 90), ("-15m", 900), ("-2h", 7200), ("-1d", 86400)])
def test_so_long_ago(text: str, ago_s: int) -> None:
    before_ms = time.time() * 1000
    target = _target(text)
    assert target.where is Where.TIME
    assert before_ms - 1 <= target.value + ago_s * 1000 <= time.time() * 1000


@pytest.mark.parametrize(
    "text",
    ["", "soon", "Earliest", "-5", "1.5", "+3", "9" * 19, "-15", "-1w", "2026-13-01", "12:00", "٣", "0001-01-01"],
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError, match="is no place to go on from"):
        _target(text)


@pytest.fixture
def views() -> list[GroupView]:
    members = (
        GroupMember("inventory-1", (0, 2), "127.0.0.1"),
        GroupMember("inv\x1b[31m" + "y" * 40, (1, 10), "127.0.0.1"),
    )
    here = [GroupProgress(number, "inventory-1", None if number else 12, 0, 12_345_678) for number in range(12)]
    return [GroupView("inventory", "PreparingRebalance", "roundrobin", members, tuple(here))]


def test_in_a_terminal_each_member_has_a_strip_above_its_figures(views: list[GroupView]) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(_drawn(views))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"inventory  Rebalancing  roundrobin  lag {12 * 12_345_678 - 12}"
    partition, first, second, committed, end, lag, rest, _, again, *_ = lines[1:]
    assert partition.split() == ["partition", "0", "1", "2", "3", "4", "5"]
    assert first.split() == ["inventory-1", "0", "·", "2", "·", "·", "·"]
    assert second.split() == ["inv\\x1b[31myyy…", "·", "1", "·", "·", "·", "·"]
    assert partition.rfind("2") == first.rfind("2")
    assert committed.split() == ["committed", "12", *["-"] * 5]
    assert end.split() == ["end", *["12345678"] * 6]
    assert lag.split() == ["lag", "12345666", *["12345678"] * 5]
    assert rest.split() == ["partition", "6", "7", "8", "9", "10", "11"]
    assert rest.find("10") == again.find("10")
    assert again.rfind("·") == rest.rfind("11") + 1


def test_in_a_pipe_each_partition_has_a_line(views: list[GroupView], capsys: pytest.CaptureFixture[str]) -> None:
    _print(views)
    header, first, *others = capsys.readouterr().out.splitlines()
    assert header.split() == ["group", "state", "partition", "owner", "committed", "end", "lag"]
    assert first.split() == ["inventory", "Rebalancing", "0", "inventory-1", "12", "12345678", "12345666"]
    assert len(others) == 11
    assert {len(line) for line in (header, first)} <= set(range(81))


@pytest.mark.parametrize(
    ("effect", "again", "skipped", "says"),
    [
        ("reserved", 12, 0, ["consumers see 12 records again; the inbox skips what it knows"]),
        (None, 1, 0, ["consumers see 1 record again"]),  # who knows what it has
        (
            "notified",
            0,
            3,
            ["3 records will not be consumed: orders not notified yet stay so; `brewctl verify` names them"],
        ),
        (None, 2, 3, ["consumers see 2 records again", "3 records will not be consumed"]),
        ("reserved", 0, 0, []),
    ],
)
def test_what_a_reset_comes_to(
    capsys: pytest.CaptureFixture[str], effect: str | None, again: int, skipped: int, says: list[str]
) -> None:
    _note_consequences(effect, again, skipped)
    assert capsys.readouterr().err.splitlines() == says


@pytest.mark.parametrize(
    ("committed", "known", "overtaken", "lost"),
    [
        (10, True, 0, ""),
        (4, True, 6, "its records 4 to 9 were removed before it read them"),
        (None, True, 10, "its records 0 to 9 were removed before it read them"),
        (None, False, 0, ""),  # a new group begins later than others, and has lost nothing
        (25, True, 0, "it ends at 20, and 25 was committed: it was truncated, or made anew"),
    ],
)
def test_what_retention_removed_before_a_group_read_it(
    committed: int | None, known: bool, overtaken: int, lost: str
) -> None:
    here = GroupProgress(0, "", committed, first=10, end=20, known=known)
    assert (here.overtaken, here.lost) == (overtaken, lost)
