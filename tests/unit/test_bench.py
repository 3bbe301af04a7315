"""The bench without servers: its figures, its table, and how it is misused."""

import contextlib
import json
from pathlib import Path

import pytest

from brewctl.cli import bench as command
from brewctl.cli import sandbox
from brewctl.cli.bench import _WHAT, _table
from brewctl.errors import BrewError, UsageError
from brewctl.lab.bench import LEGS, figures
from brewctl.lab.bench.figures import Figure
from brewctl.sandbox import tools
from tests.conftest import run


@pytest.mark.parametrize(
    ("figure", "ratio", "reached", "target"),
    [
        (Figure("a", 80, "/s", 100, "floor", at_least=0.8), 0.8, True, "≥ 0.8"),
        (Figure("a", 79, "/s", 100, "floor", at_least=0.8), 0.79, False, "≥ 0.8"),
        (Figure("a", 20, "ms", 10, "floor", at_most=2.0), 2.0, True, "≤ 2"),
        (Figure("a", 21, "ms", 10, "floor", at_most=2.0), 2.1, False, "≤ 2"),
        # Without a floor, the value itself is to be reached.
        (Figure("a", 20, "ms", at_most=20), None, True, "≤ 20"),
        (Figure("a", 21, "ms", at_most=20), None, False, "≤ 20"),
        # Nothing to reach; a floor that could not be measured.
        (Figure("a", 5, "/s", 10, "floor"), 0.5, None, ""),
        (Figure("a", 5, "/s", None, "floor", at_least=0.8), None, None, "≥ 0.8"),
        # A value that could not be measured.
        (Figure("a", None, "/s", 10, "floor", at_least=0.8), None, None, "≥ 0.8"),
        (Figure("a", None, "ms", at_most=20), None, None, "≤ 20"),
    ],
)
def test_a_figure_is_judged_by_its_floor(
    figure: Figure, ratio: float | None, reached: bool | None, target: str
) -> None:
    assert (figure.ratio, figure.reached, figure.target) == (ratio, reached, target)


def test_a_run_is_compared_with_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(figures.to_json([Figure("create, 64 in flight", 2000, "/s", 2500, "empty handler")])))
    before = figures.earlier(path)
    assert before == {"create, 64 in flight": 2000}
    now = [
        Figure("create, 64 in flight", 2500, "/s", 2500, "empty handler", at_least=0.8),
        Figure("create against SQL, 64 in flight", 123_456, "/s", None, "pgbench"),
        Figure("end to end p50, 100 orders/s", 5.4321, "ms", at_most=20),
    ]
    _table(now, before)
    head, *rows = capsys.readouterr().out.splitlines()
    assert max(map(len, (head, *rows))) <= 80
    assert rows[0].split()[-4:] == ["≥", "0.8", "ok", "+25%"]
    assert "123,456 /s" in rows[1]
    assert "5.43 ms" in rows[2]


def test_a_figure_that_is_missing_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = [Figure("create, 64 in flight", None, "/s", None, "empty handler", at_least=0.8)]
    path = tmp_path / "before.json"
    path.write_text(json.dumps(figures.to_json(without)))
    assert figures.earlier(path) == {}
    _table(without, {"create, 64 in flight": 2000})
    (_, row) = capsys.readouterr().out.splitlines()
    assert row.split() == ["create,", "64", "in", "flight", "-", "-", "-", "≥", "0.8"]

    def measure(_settings: object, _chosen: object, _logs: object, measured: list[Figure]) -> None:
        measured += without

    monkeypatch.setattr(command, "_measure", measure)
    monkeypatch.setattr(sandbox, "emptied", lambda *_, **__: contextlib.nullcontext())
    with pytest.raises(BrewError, match=r"^not measured: create, 64 in flight"):
        command.bench(leg=["create"])


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"version": 99, "figures": []}', '{"version": 1}', '{"version": 1, "figures": [{"name": 1}]}'],
)
def test_what_is_no_earlier_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "before.json").write_text(content)
    with pytest.raises(UsageError):
        figures.earlier(tmp_path / "before.json")


def test_every_leg_is_described() -> None:
    assert list(_WHAT) == list(LEGS)
    listed = run("bench", "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(LEGS)


OWN = {"BREW_DATABASE_URL": "postgresql://127.0.0.1:1/x", "BREW_KAFKA_BROKERS": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--leg", "nothing"], {}, "no leg 'nothing': see `brewctl bench --list`"),
        (["--against", "nothing.json"], {}, "--against nothing.json can't be read (no such file or directory)"),
        ([], {"BREW_KAFKA_BROKERS": "127.0.0.1:1"}, "the bench needs both servers"),
        # What is the user's is not emptied without a question.
        ([], OWN, "this destroys every order in the database"),
    ],
)
def test_misuse_is_one_line(tmp_path: Path, arguments: list[str], env: dict[str, str], said: str) -> None:
    done = run("bench", *arguments, env={"BREW_HOME": str(tmp_path), **env})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line


def test_servers_that_are_away(tmp_path: Path) -> None:
    done = run("bench", "--yes", "--leg", "publish", env={"BREW_HOME": str(tmp_path), **OWN})
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("brewctl: postgres 127.0.0.1:1/x refused the connection")


def test_a_tool_that_fails_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BrewError, match="pgbench failed: "):
        tools.pgbench(OWN["BREW_DATABASE_URL"], tmp_path / "nothing.sql", clients=1, seconds=1)
