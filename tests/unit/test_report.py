"""The report: one file that needs nothing else, whatever a run may have left in it."""

import dataclasses
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from brewctl.errors import BrewError
from brewctl.lab import report
from brewctl.lab.record.history import Act, ActEvent, Claim, FaultSpan, FlowSample, Mark, Ownership

VOID = {"meta", "br", "hr", "img", "input", "link"}
NASTY = "<script>alert('1')</script>\"&\x1b[31m\x00\ud800 kafka"


def sample(at_s: float, orders: int, reserved: int, *, unpublished: int = 0) -> FlowSample:
    return FlowSample(at_s, orders, unpublished, {"reservations": reserved, "notifications": orders})


def played(name: str = "kill-consumer", *, seconds: int = 30) -> Act:
    """An act as chaos records it."""
    samples = [sample(at / 5, at * 8, at * 7, unpublished=at % 3) for at in range(seconds * 5)]
    owners = {partition: f"inventory-{partition % 2 + 1}" for partition in range(6)}
    moved = {**dict.fromkeys(range(6), "inventory-2"), 5: ""}
    return Act(
        name,
        f"what {name} does",
        ok=True,
        samples=samples,
        ownerships=[Ownership(0.7, "inventory", owners), Ownership(9.1, "inventory", moved)],
        faults=[FaultSpan(3.0, 9.0, "kill -9 inventory-1", ("inventory-1",)), FaultSpan(5.0, 5.0, "poison records")],
        marks=[Mark(9.1, "rebalance: 0, 2, 4 move")],
        events=[ActEvent(1.0, "[inventory-1] partitions assigned [0, 2, 4]"), ActEvent(3.0, "kill -9 inventory-1")],
        figures=[("acknowledged", "1200"), ("lost", "0")],
    )


ODD = {
    "empty": Act("empty", "nothing at all"),
    "one sample": Act("one", "one look", samples=[sample(0.0, 0, 0)]),
    "only owners": Act("owners", "no look", ownerships=[Ownership(1.0, "inventory", {0: "inventory-1"})]),
    "never mended": dataclasses.replace(played(), faults=[FaultSpan(1.0, math.inf, "kill -9 kafka-1")]),
    "claims": dataclasses.replace(
        played(),
        claims=[Claim("none lost", holds=True, found="unsaid"), Claim("all agree", holds=False, found="3 of 4")],
    ),
    "many faults": dataclasses.replace(played(), faults=[FaultSpan(at / 9, at / 9 + 2, f"f{at}") for at in range(200)]),
    "skipped": Act("full-disk", "a full disk", skipped="needs root"),
    "failed": dataclasses.replace(played("zombie"), ok=False, findings=["order 1 was acknowledged and is not there"]),
    "nasty": Act(
        "nasty",
        NASTY,
        samples=[sample(0.0, 1, 1, unpublished=1), sample(9.0, 2, 2)],
        ownerships=[Ownership(0.0, NASTY, {0: NASTY})],
        faults=[FaultSpan(0.0, 1.0, NASTY, (NASTY,))],
        marks=[Mark(0.5, NASTY)],
        claims=[Claim(NASTY, holds=False, found=NASTY)],
        events=[ActEvent(0.0, NASTY)],
        figures=[(NASTY, NASTY)],
        findings=[NASTY],
    ),
}
EVERYTHING = [played("kill-order"), *ODD.values()]


@pytest.fixture
def page(tmp_path: Path) -> str:
    return written(tmp_path / "all.html", EVERYTHING)


def written(path: Path, acts: Sequence[Act]) -> str:
    report.write(path, title="brewctl chaos", subtitle="a few scenarios", acts=acts, facts=[("command", NASTY)])
    return path.read_text("utf-8")


class Balance(HTMLParser):
    """Finds out whether every element ends where it should, and what the elements have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_element_ends_where_it_should(page: str) -> None:
    assert Balance(page).open == []


def test_every_picture_is_well_formed(page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) > len(EVERYTHING)
    for picture in pictures:
        ET.fromstring(picture)


@pytest.mark.parametrize("act", EVERYTHING, ids=lambda act: act.name)
def test_an_act_is_a_picture_of_its_own(tmp_path: Path, act: Act) -> None:
    report.write_svg(path := tmp_path / "act.svg", act)
    picture = ET.parse(path).getroot()
    assert picture.get("viewBox", "").startswith("0 0 960 ")
    text = ET.tostring(picture, "unicode")
    assert not re.search(r"\b(nan|inf)\b", text)
    assert "var(" not in text, "not every viewer knows variables"
    assert text.count("stroke: #0067a6") == text.count("stroke: #5cb2ea") == 1, "light and dark"


def test_it_runs_nothing_and_loads_nothing(page: str) -> None:
    found = Balance(page)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\x00" not in page
    assert "@import" not in page
    assert {tag for tag, _, _ in found.attributes}.isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    for _, name, value in found.attributes:
        assert not name.startswith("on")
        assert name != "src"
        if name in {"href", "xlink:href"}:
            assert value.startswith("#")
        elif name != "xmlns":
            assert "://" not in value
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert "default-src &#x27;none&#x27;" in page


def test_every_reference_has_its_target(page: str) -> None:
    found = Balance(page)
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for _, name, value in found.attributes if name == "href"} | set(
        re.findall(r"url\(#(.*?)\)", page)
    )
    assert wanted
    assert wanted <= set(ids)


def test_it_says_how_it_ended(tmp_path: Path) -> None:
    ok, failed, skipped = played("kill-order"), ODD["failed"], ODD["skipped"]
    assert "<strong>1 of 1 ok</strong>" in written(tmp_path / "a.html", [ok])
    assert "all 2 of 2 ok, 1 skipped" in written(tmp_path / "b.html", [ok, ok, skipped])
    both = written(tmp_path / "c.html", [ok, failed])
    assert "1 of 2 failed: zombie" in both
    assert "order 1 was acknowledged and is not there" in both
    assert "Did not run: needs root" in written(tmp_path / "d.html", [ok, skipped])
    assert "nothing ran" in written(tmp_path / "e.html", [skipped])


def test_it_has_charts_bands_and_strips(tmp_path: Path) -> None:
    text = written(tmp_path / "a.html", [played()])
    for told in (
        "reservations",
        "unpublished outbox rows",
        "kill -9 inventory-1: 3.0 s to 9.0 s",
        "poison records: 5.0 s",
        "rebalance: 0, 2, 4 move: 9.1 s",
        "inventory: owner of each partition",
        "partition 0: inventory-1, 0.7 to 9.1 s",
        "partition 5: nobody, 9.1 to ",
        "owner can&#x27;t work",
    ):
        assert told in text


def test_it_has_what_was_claimed_and_what_was_found_instead(tmp_path: Path) -> None:
    text = re.sub("<.*?>", "", written(tmp_path / "a.html", [ODD["claims"]]))
    assert "✓ none lost✗ all agree: 3 of 4" in text
    assert "unsaid" not in text


def test_light_dark_narrow_and_paper_have_their_styles(page: str) -> None:
    assert "@media print" in page
    assert "max-width" in page
    assert page.count("prefers-color-scheme: dark") == 2, "of the page and of its pictures"


def test_the_same_run_makes_the_same_file(tmp_path: Path) -> None:
    assert written(tmp_path / "a.html", EVERYTHING) == written(tmp_path / "b.html", EVERYTHING)


def test_a_file_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BrewError, match=r"^can't write .*none/a\.html \(No such file or directory\)$"):
        written(tmp_path / "none" / "a.html", [played()])
    with pytest.raises(BrewError, match=r"^can't write .*none/a\.svg \(No such file or directory\)$"):
        report.write_svg(tmp_path / "none" / "a.svg", played())
