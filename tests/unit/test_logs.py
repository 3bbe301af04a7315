"""The nodes' logs, as files: merged by time, cut to their ends, followed through whatever is done to them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from brewctl.errors import BrewError
from brewctl.lab.play import logs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the logs. Where nothing comes that is waited for, the test ends."""
    looks = itertools.count()

    def pause(_seconds: float) -> None:
        assert next(looks) < 100

    monkeypatch.setattr(logs, "time", SimpleNamespace(sleep=pause))
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def shown(folder: Path, *names: str, tail: int | None = None) -> list[str]:
    return [f"{line.node}: {line.text.decode()}" for line in logs.read(folder.parent, names, tail=tail)]


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def following(folder: Path, *names: str, tail: int | None = None) -> Iterator[str]:
    return (f"{line.node}: {line.text.decode()}" for line in logs.read(folder.parent, names, tail=tail, follow=True))


def test_lines_stand_in_the_order_of_their_times(folder: Path) -> None:
    (folder / "order-1.log").write_text("ts=2026-01-01T00:00:01Z one\nts=2026-01-01T00:00:03Z three\n")
    (folder / "order-2.log").write_text("ts=2026-01-01T00:00:02Z two\nts=2026-01-01T00:00:04Z four\n")
    assert [line.rpartition(" ")[2] for line in shown(folder)] == ["one", "two", "three", "four"]


def test_a_line_without_a_time_stays_behind_the_one_before_it(folder: Path) -> None:
    (folder / "a.log").write_text("listens\nts=2026-01-01T00:00:02Z b\nTraceback\n  where\n")
    (folder / "b.log").write_text("ts=2026-01-01T00:00:01Z a\nts=2026-01-01T00:00:03Z c\n")
    assert [line[:6] for line in shown(folder)] == ["a: lis", "b: ts=", "a: ts=", "a: Tra", "a:   w", "b: ts="]


def test_those_of_some_nodes(folder: Path) -> None:
    for name in ("a", "b", "c"):
        (folder / f"{name}.log").write_text("x\n")
    assert shown(folder, "c", "a") == ["a: x", "c: x"]


def test_other_files_are_no_logs_of_nodes(folder: Path) -> None:
    (folder / "a.log.1").write_text("older\n")
    (folder / "demo").mkdir()
    (folder / "demo" / "b.log").write_text("the demo's\n")
    assert shown(folder) == []
    assert shown(folder / "absent") == []


@pytest.mark.parametrize(("tail", "left"), [(0, []), (1, ["a: 3", "b: 1"]), (2, ["a: 2", "a: 3", "b: 1"])])
def test_the_last_lines_of_each(folder: Path, tail: int, left: list[str]) -> None:
    (folder / "a.log").write_text("1\n2\n3\n")
    (folder / "b.log").write_text("1\n")
    assert shown(folder, tail=tail) == left


@pytest.mark.parametrize("tail", [0, 1, 5, 400])
def test_a_large_log_is_not_read_from_its_beginning(folder: Path, monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    monkeypatch.setattr(logs, "_LONGEST_BYTES", 64)
    lines = [f"ts=2026-01-01T00:00:00.{number:03}Z {number}" for number in range(400)]
    with (folder / "a.log").open("w") as log:
        log.write("".join(f"{line}\n" for line in lines))
    assert shown(folder, tail=tail) == [f"a: {line}" for line in lines[len(lines) - tail :]]
    with (folder / "a.log").open("rb") as log:
        logs._near_end(log, tail)
        left = len(log.readlines())
    assert tail < left <= 2 * tail + 3 or left == 400


def test_a_line_whose_end_is_missing(folder: Path) -> None:
    """What a node left that died in the middle of it is shown; what it is still writing is waited for."""
    log = folder / "a.log"
    log.write_text("whole\nha")
    assert shown(folder) == ["a: whole", "a: ha"]
    lines = following(folder)
    assert next(lines) == "a: whole"
    append(log, "lf\n")
    assert next(lines) == "a: half"


def test_a_line_without_end_is_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LONGEST_BYTES", 4)
    (folder / "a.log").write_text("abcdefghij\n")
    assert shown(folder) == ["a: abcd", "a: efgh", "a: ij"]


def test_all_logs_are_followed_from_their_last_lines_on(folder: Path) -> None:
    (folder / "a.log").write_text("1\n2\n")
    (folder / "b.log").write_text("1\n")
    lines = following(folder, tail=1)
    assert [next(lines), next(lines)] == ["a: 2", "b: 1"]
    append(folder / "b.log", "2\n3\n")
    assert [next(lines), next(lines)] == ["b: 2", "b: 3"]
    append(folder / "a.log", "3\n")
    assert next(lines) == "a: 3"


def test_a_node_that_starts_later_is_followed_too_unless_others_were_named(folder: Path) -> None:
    (folder / "a.log").write_text("1\n")
    lines, of_a = following(folder), following(folder, "a")
    assert next(lines) == next(of_a) == "a: 1"
    (folder / "b.log").write_text("2\n")
    assert next(lines) == "b: 2"
    append(folder / "a.log", "3\n")
    assert next(lines) == next(of_a) == "a: 3"


def test_a_truncated_log_is_read_from_its_beginning(folder: Path) -> None:
    log = folder / "a.log"
    log.write_text("a long line\n")
    lines = following(folder)
    assert next(lines) == "a: a long line"
    log.write_text("new\n")
    assert next(lines) == "a: new"


def test_a_replaced_log_is_read_to_its_end_and_then_the_new_one(folder: Path) -> None:
    log = folder / "a.log"
    log.write_text("1\n")
    lines = following(folder)
    assert next(lines) == "a: 1"
    append(log, "2\nthe last wo")
    log.rename(folder / "a.log.1")
    log.write_text("one that is longer than the old one was\n")
    assert [next(lines) for _ in range(3)] == ["a: 2", "a: the last wo", "a: one that is longer than the old one was"]


def test_a_removed_log_may_come_back(folder: Path) -> None:
    log = folder / "a.log"
    log.write_text("1\n")
    (folder / "b.log").write_text("")
    lines = following(folder)
    assert next(lines) == "a: 1"
    log.unlink()
    append(folder / "b.log", "meanwhile\n")
    assert next(lines) == "b: meanwhile"
    log.write_text("2\n")
    assert next(lines) == "a: 2"


def test_a_log_that_can_not_be_read(folder: Path) -> None:
    (folder / "a.log").mkdir()
    with pytest.raises(BrewError, match=r"a\.log can't be read \(is a directory\)"):
        shown(folder)
