"""Which ids a publisher reads, and when: of an outbox that is a set of ids, by a clock that each fetch moves."""

from types import SimpleNamespace
from typing import Any

import pytest

from brewctl.delivery.outbox import scan as scan_module
from brewctl.delivery.outbox.scan import Fetched, Scan

LIMIT = 10


class Outbox:
    """Answers fetches: `waiting` are ids that can be taken, `stuck` those that can't; `dead` entries cost time."""

    def __init__(self, *, ids: int, look_s: float = 0.0, dead_s: float = 0.0) -> None:
        self.ids, self.look_s, self.dead_s = ids, look_s, dead_s
        self.now_s = 0.0
        self.waiting: set[int] = set()
        self.stuck: set[int] = set()
        self.asked: list[tuple[int, int]] = []
        self.took: list[float] = []

    def execute(self, _query: str, asked: dict[str, Any]) -> SimpleNamespace:
        after, until, limit = asked["after"], min(asked["until"], self.ids), asked["limit"]
        ready = sorted(row for row in self.waiting | self.stuck if after < row <= until)[:limit]
        last = ready[-1] if len(ready) == limit else until
        rows = [row for row in ready if row in self.waiting]
        self.asked.append((after, asked["until"]))
        self.took.append(self.look_s + self.dead_s * max(0, last - after))
        self.now_s += self.took[-1]
        found: list[tuple[Any, ...]] = [(row, None, len(ready), last) for row in rows] or [
            (None, None, len(ready), last)
        ]
        return SimpleNamespace(fetchall=lambda: found)


@pytest.fixture
def scan() -> Scan:
    return Scan()


def look(scan: Scan, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Fetched:
    monkeypatch.setattr(scan_module, "time", SimpleNamespace(monotonic=lambda: outbox.now_s))
    fetched = scan.fetch(outbox, limit=LIMIT, size=1, without_topics=[])  # type: ignore[arg-type]
    outbox.waiting -= {row[0] for row in fetched.rows}
    scan.settle(fetched)
    return fetched


def at_the_end(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A publisher that has just published the last row, and has looked at all before."""
    monkeypatch.setattr(scan_module, "time", SimpleNamespace(monotonic=lambda: outbox.now_s))
    scan = Scan()
    looks = 1
    while look(scan, outbox, monkeypatch).more:
        looks += 1
        assert looks <= outbox.ids, "it gets on"
    outbox.asked.clear()
    outbox.took.clear()
    return scan


def test_a_cheap_look_begins_at_the_first_id_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(ids=1000, look_s=0.0003)
    scan = at_the_end(outbox, monkeypatch)
    for _ in range(100):
        outbox.now_s += 0.01
        look(scan, outbox, monkeypatch)
    assert {after for after, _ in outbox.asked} <= {0, 1000 - LIMIT}
    assert [after for after, _ in outbox.asked].count(0) >= 50
    assert len(outbox.asked) == 100, "where all is read, nothing is read twice"


@pytest.mark.parametrize("rows", [0, 1], ids=["idle", "busy"])
@pytest.mark.parametrize("ids", [10_000, 1_000_000])
def test_looks_behind_have_their_share_of_the_time_and_none_takes_long(
    monkeypatch: pytest.MonkeyPatch, ids: int, rows: int
) -> None:
    """A million dead entries take half a second to read: just once, to find that out, does a fetch wait so long."""
    outbox = Outbox(ids=ids, look_s=0.0002, dead_s=5e-7)
    scan = at_the_end(outbox, monkeypatch)
    began = outbox.now_s
    for _ in range(10_000):
        outbox.now_s += 0.01
        if rows:
            outbox.ids += 1
            outbox.waiting.add(outbox.ids)
        assert len(look(scan, outbox, monkeypatch).rows) == rows
    behind = [(after, took) for (after, _), took in zip(outbox.asked, outbox.took, strict=True) if after < ids - LIMIT]
    assert sum(took for _, took in behind[1:]) <= 0.06 * (outbox.now_s - began)
    assert max(took for _, took in behind[1:]) <= 2.1 * scan_module._LOOK_S
    assert [after for after, _ in behind].count(0) >= 3, "they begin anew"
    assert max(after for after, _ in behind) >= 0.9 * ids or ids < 1_000_000


def test_a_crowd_that_can_not_be_taken_is_passed_and_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(ids=5000, look_s=0.001)
    outbox.stuck = set(range(1, 5001))
    scan = at_the_end(outbox, monkeypatch)
    looks = 0
    for _ in range(10):
        outbox.now_s += 0.5
        outbox.ids += 1
        outbox.waiting.add(outbox.ids)
        assert [row[0] for row in look(scan, outbox, monkeypatch).rows] in ([outbox.ids], [])
    outbox.waiting.add(7)
    while 7 in outbox.waiting:
        outbox.now_s += 0.5
        look(scan, outbox, monkeypatch)
        looks += 1
        assert looks < 5000 / LIMIT
