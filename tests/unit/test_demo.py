"""The demo's words, chart and screen, without a server."""

import inspect
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from brewctl.delivery.broker import GroupMember
from brewctl.errors import BrewError
from brewctl.lab.demo import narration, text_chart
from brewctl.lab.demo.play import DemoVerdict
from brewctl.lab.demo.recorder import Scene
from brewctl.lab.demo.views import Screen
from brewctl.lab.play.cast import STORY
from brewctl.lab.record.history import Act, Claim, FaultSpan, FlowSample, Mark
from brewctl.overview import Counts

KILL_S, REBALANCE_S, END_S = 5.0, 12.0, 15.0
MOST = 100_000  # orders that a demo may have
PID = 4_194_304  # the highest that Linux gives


def played() -> Act:
    """Orders from 2 s on, half of the reservations missing from the kill to the rebalance."""
    samples = []
    for tenth in range(int(END_S * 10) + 1):
        at_s = tenth / 10
        orders = min(200, max(0, round((at_s - 2) * 40)))
        reserved = orders if at_s < KILL_S or at_s > REBALANCE_S else 120 + (orders - 120) // 4
        samples.append(FlowSample(at_s, orders, 0, {"reservations": reserved, "notifications": orders}))
    return Act(
        "demo",
        "five nodes",
        samples=samples,
        faults=[FaultSpan(KILL_S, REBALANCE_S, "kill -9 inventory-1", ("inventory-1",))],
        marks=[Mark(REBALANCE_S, "rebalance: 0, 2, 4 move to inventory-2")],
    )


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_chart_has_three_curves_that_need_no_colour(width: int) -> None:
    lines = text_chart.draw(played(), width).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= text_chart.HEIGHT
    assert "░ orders 200   █ reservations" in lines[0]
    highest = lines[1].partition("┤")[2]
    # From left to right: nothing yet; all notified, not reserved; all reserved.
    assert [*dict.fromkeys(highest)] == [" ", "•", "█"]
    waiting = lines[2].partition("┤")[2]
    assert "░" in waiting


def test_a_row_that_is_hardly_begun_is_not_reached() -> None:
    act = Act(
        "demo",
        "a gap",
        samples=[FlowSample(at_s, 200, 0, {"reservations": 154, "notifications": 200}) for at_s in (0.0, 1.0)],
    )
    rows = [line.partition("┤")[2] for line in text_chart.draw(act, 40).plain.splitlines() if "┤" in line]
    assert ["".join({*row}) for row in rows[:3]] == ["•", "░", "█"]


def test_the_chart_has_the_kill_and_the_rebalance_on_its_axis() -> None:
    *_, axis, _, kill, rebalance = text_chart.draw(played(), 80).plain.splitlines()
    assert kill.strip() == "▲ kill -9 inventory-1, 5.0 s"
    assert rebalance.strip() == "▲ rebalance: 0, 2, 4 move to inventory-2, 12.0 s"
    first, second = (column for column, sign in enumerate(axis) if sign == "▲")
    plot = range(axis.index("└") + 1, len(axis))
    for column, at_s in ((first, KILL_S), (second, REBALANCE_S)):
        assert column == pytest.approx(plot[0] + (at_s - 2.1) / (END_S - 2.1) * (len(plot) - 1), abs=1)
    assert kill.index("▲") == first


def test_a_chart_of_nothing_is_nothing() -> None:
    assert text_chart.draw(Act("demo", "none"), 80).plain == ""
    assert text_chart.draw(Act("demo", "none", samples=[FlowSample(at, 0, 0) for at in (0.0, 1.0)]), 80).plain == ""


@pytest.mark.parametrize("session_s", [6.0, 15.0])
def test_a_line_of_narration_fits_into_its_panel(session_s: float) -> None:
    counts = Counts(MOST, MOST, MOST, MOST)
    owned, offsets = [0, 2, 4], {0: MOST, 2: MOST, 4: MOST}
    lines = [
        *(value for name, value in inspect.getmembers(narration) if name.isupper() and isinstance(value, str)),
        *(narration.title(number) for number in range(1, 7)),
        narration.topic(3),
        narration.group_of_two("inventory-1", owned, "inventory-2", [1, 3, 5]),
        narration.group_of_one("notification-1"),
        narration.orders(MOST, MOST / 10),
        narration.progress(counts),
        narration.threat("inventory-1", PID, MOST),
        narration.killed("inventory-1", PID),
        narration.no_goodbye(owned),
        narration.wait(owned, session_s),
        narration.committed(owned, offsets),
        narration.piled_up(counts, owned),
        narration.moved(owned, "inventory-2", 99.9),
        narration.caught_up(counts, 99.9),
        *(narration.repeats(skipped, "inventory-1", "inventory-2") for skipped in (0, 1, 999)),
        *(narration.prompt(number) for number in range(2, 7)),
    ]
    assert [line for line in lines if len(line) > 76] == []
    assert f"waits {session_s:g} s" in narration.wait(owned, session_s)


def test_a_partition_without_a_committed_offset_is_read_from_its_beginning() -> None:
    assert "0:0, 2:7, 4:0:" in narration.committed([0, 2, 4], {2: 7})


def test_the_line_of_repeats_counts_them() -> None:
    none, one, more = (narration.repeats(skipped, "inventory-1", "inventory-2") for skipped in (0, 1, 3))
    assert none.startswith("no record came twice")
    assert one == "1 record came twice; inventory-2 found its dedup row and skipped it"
    assert more == "3 records came twice; inventory-2 found their dedup rows and skipped them"


@pytest.fixture
def screen() -> Screen:
    """The screen while Kafka still waits for the killed node."""
    screen = Screen()
    screen.begin(narration.title(5))
    for _ in range(60):
        screen.tell("[inventory-2] " + "a line that is wider than the terminal " * 3)
    for text in (narration.wait([0, 2, 4], 15), narration.piled_up(Counts(200, 0, 150, 200), [0, 2, 4])):
        screen.say(text)
    screen.ask(narration.prompt(6))
    states = dict.fromkeys(STORY.nodes, "runs") | {"inventory-1": "killed"}
    owners = [GroupMember("inventory-1", (0, 2, 4), ""), GroupMember("inventory-2", (1, 3, 5), "")]
    pids = dict.fromkeys(STORY.nodes, PID)
    screen.show(Scene(200, played(), Counts(200, 0, 150, 200), {"order-1": 100}, owners, states, pids))
    return screen


def drawn(screen: Screen, width: int, height: int) -> list[str]:
    """What is left of it without colours."""
    console = Console(file=(file := StringIO()), width=width, height=height)
    console.print(screen.draw(width, height))
    return file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (200, 50), (60, 24)])
def test_the_screen_fits_and_uses_what_there_is(screen: Screen, width: int, height: int) -> None:
    lines = drawn(screen, width, height)
    assert height - 2 <= len(lines) <= height - 1
    assert max(map(len, lines)) <= width
    assert any("┤" in line for line in lines) == (height > 40), "the chart, where there is room"


def test_the_screen_is_read_without_colours(screen: Screen) -> None:
    text = "\n".join(drawn(screen, 80, 24))
    for told in (
        "act 5 of 6: the wait and the rebalance",
        "Kafka waits 15 s for its heartbeat before it moves partitions 0, 2, 4",
        "all 200 orders are notified; 50 wait to be reserved, in 0, 2, 4",
        "any key: act 6 of 6: the verdict · q: end",
        f"{PID}  ✗ killed",
        "✗0  · ✗2  · ✗4  · no heartbeat",
        "·  1  ·  3  ·  5 ",
        "100 published",
    ):
        assert told in text


def test_the_picture_has_the_plateau_and_the_verdict_and_loads_nothing(screen: Screen, tmp_path: Path) -> None:
    verdict = DemoVerdict([Claim("none lost", holds=True), Claim("all agree", holds=False, found="3 of 4")], {}, 12.0)
    screen.begin(narration.title(6))
    screen.save(verdict, path := tmp_path / "demo.svg")
    picture = path.read_text("utf-8")
    told = "".join(ET.fromstring(picture).itertext()).replace("\xa0", " ")
    for text in ("act 5 of 6", "✗ killed", "no heartbeat", "✔ none lost", "✘ all agree: 3 of 4", "verdict: FAILED"):
        assert text in told
    assert "url(http" not in picture
    assert "@font-face" not in picture
    with pytest.raises(BrewError, match=r"^can't write .*none/demo\.svg \(No such file or directory\)$"):
        screen.save(verdict, tmp_path / "none" / "demo.svg")
