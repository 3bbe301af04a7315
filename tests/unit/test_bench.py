"""The bench without servers: its figures, its table, and how it is misused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from brewctl.cli import bench as command
from brewctl.cli import sandbox
from brewctl.cli.bench import _WHAT, _chosen
from brewctl.config import Settings
from brewctl.errors import BrewError, UsageError
from brewctl.lab.bench import LEGS, figures, machine, table
from brewctl.lab.bench.figures import Figure, rows
from brewctl.lab.bench.ground import Sizes
from brewctl.sandbox import tools
from tests.conftest import run

MACHINE: dict[str, Any] = {
    "cores": 2,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "cpu": "A processor of many words @ 2.20GHz, longer than what the line has room for, by a lot",
    "others_busy": 0.034,
    "loop_ms": 25.3,
    "fsync_ms": None,
}


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
    (row,) = rows([figure])
    assert (row.ratio, row.reached, row.target) == (ratio, reached, target)


def test_of_several_runs_the_medians_are_judged_and_the_spread_is_kept() -> None:
    # Each ratio is of one run: that of the medians would be 0.5.
    runs = [Figure("a", value, "/s", floor, "floor", at_least=0.8) for value, floor in ((90, 100), (50, 60), (40, 400))]
    (row, other) = rows([*runs[:1], Figure("b", 1, "ms"), *runs[1:]])
    assert (row.value, row.floor, row.spread) == (50, 100, (40, 90))
    assert row.ratio == pytest.approx(50 / 60)
    assert row.ratio_spread == (0.1, 0.9)
    assert row.reached
    assert (other.name, len(other.runs)) == ("b", 1)
    (missed,) = rows([*runs, Figure("a", 10, "/s", 100, "floor", at_least=0.8)])
    assert missed.reached is False


def test_a_run_that_is_not_to_be_judged_does_not_count_for_the_verdict() -> None:
    busy = Figure("end to end p50, 100 orders/s", 90, "ms")
    (row,) = rows([busy, Figure(busy.name, 19, "ms", at_most=20.0), busy])
    assert (row.value, row.reached, row.target) == (90, True, "≤ 20")
    (alone,) = rows([busy])
    assert (alone.reached, alone.target) == (None, "")


def test_what_no_run_measured_is_missing_unless_it_may_be() -> None:
    nothing, something = Figure("a", None, "ms"), Figure("a", 1, "ms")
    assert [row.missing for row in rows([nothing])] == [True]
    assert [row.missing for row in rows([nothing, something])] == [False]
    assert [row.missing for row in rows([Figure("a", None, "ms", optional=True)])] == [False]


def test_a_bench_is_compared_with_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    twice = [Figure("create, 64 in flight", value, "/s", 2500, "empty handler") for value in (1900, 2100)]
    path.write_text(json.dumps(figures.to_json(twice, MACHINE)))
    told = json.loads(path.read_text())
    assert told["machine"] == MACHINE
    assert (told["version"], told["figures"][0]["lowest"], told["figures"][0]["highest"]) == (2, 1900, 2100)
    assert [each["value"] for each in told["figures"][0]["runs"]] == [1900, 2100]
    before = figures.earlier(path)
    assert before == {"create, 64 in flight": 2000}
    now = [
        Figure("create, 64 in flight", 2500, "/s", 2500, "empty handler", at_least=0.8),
        Figure("create against SQL, 64 in flight", 123_456, "/s", None, "pgbench"),
        Figure("end to end p50, 100 orders/s", 5.4321, "ms", at_most=20),
    ]
    first, second, third = list(table.lines(rows(now), before, MACHINE))[-3:]
    assert first.split()[-4:] == ["≥", "0.8", "ok", "+25%"]
    assert "123,456 /s" in second
    assert "5.43 ms" in third


def test_a_bench_of_the_version_before_can_be_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    path.write_text('{"version": 1, "machine": {}, "figures": [{"name": "a", "value": 3, "floor": 4, "ratio": 0.75}]}')
    assert figures.earlier(path) == {"a": 3.0}


def test_the_table_has_80_columns_and_the_machine_above_it() -> None:
    wide: dict[str, Any] = {"floor": 123_456, "floor_name": "floor", "at_least": 0.95}
    name = "consumer drain against one by one"
    thrice = [Figure(name, value, "/s", **wide) for value in (123_456, 234_567, 345_678)]
    lines = list(table.lines(rows(thrice), {name: 1000.0}, {**MACHINE, "brokers": 3, "kafka_client": "librdkafka"}))
    assert max(map(len, lines)) <= 80
    assert lines[0] == "machine   2 cores, Linux x86_64, Python 3.11.7"
    assert lines[1].startswith("cpu       A processor")
    assert lines[2] == "kafka     3 brokers; nodes use librdkafka where a figure names no client"
    assert lines[3] == "speed     Python loop 25.30 ms, 8 kB and an fsync -; other work: 3 %"
    assert lines[-1].strip() == "3 runs: 123,456 to 345,678 /s, ratio 1.00 to 2.80"
    short = list(table.lines([], {}, {**MACHINE, "cpu": "EPYC"}))
    assert short[0] == "machine   2 cores, Linux x86_64, Python 3.11.7, EPYC"
    assert short[1].startswith("speed")


def bench(monkeypatch: pytest.MonkeyPatch, *measured: Figure, ended_by: BaseException | None = None) -> None:
    """Run the command, whose legs measure this."""

    def measure(
        _settings: object,
        _chosen: object,
        _logs: object,
        into: list[Figure],
        *,
        times: int,
        sizes: Sizes,
    ) -> None:
        assert sizes == Sizes()
        into += [*measured] * times
        if ended_by:
            raise ended_by

    monkeypatch.setattr(command, "_measure", measure)
    monkeypatch.setattr(command, "_machine", lambda _settings: MACHINE)
    monkeypatch.setattr(sandbox, "emptied", lambda *_, **__: contextlib.nullcontext())
    command.bench(leg=["create"], repeat=2)


def test_a_figure_that_is_missing_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = Figure("create, 64 in flight", None, "/s", None, "empty handler", at_least=0.8)
    path = tmp_path / "before.json"
    path.write_text(json.dumps(figures.to_json([without], MACHINE)))
    assert figures.earlier(path) == {}
    with pytest.raises(BrewError, match=r"^not measured: create, 64 in flight"):
        bench(monkeypatch, without)
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split() == ["create,", "64", "in", "flight", "-", "-", "-", "≥", "0.8"]


def test_what_can_not_be_had_of_foreign_servers_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench(monkeypatch, Figure("CPU of Kafka, 64 in flight", None, "ms", optional=True))
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "CPU",
        "of",
        "Kafka,",
        "64",
        "in",
        "flight",
        "-",
        "-",
        "-",
    ]


def test_what_was_measured_before_an_interrupt_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench(monkeypatch, Figure("one worker", 1234, "/s"), ended_by=KeyboardInterrupt())
    *_, row, spread = capsys.readouterr().out.splitlines()
    assert row.split() == ["one", "worker", "1,234", "/s", "-", "-"]
    assert spread.strip() == "2 runs: 1,234 to 1,234 /s"


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
    assert max(map(len, listed.stdout.splitlines())) <= 80


def test_long_legs_are_measured_where_they_are_named_and_nothing_twice() -> None:
    assert _chosen(None) == ["create", "workers", "publish", "consume", "flow", "memory", "startup"]
    assert _chosen(["queue", "growth", "create"]) == ["create", "growth", "queue"]
    assert _chosen(["latency", "create"]) == ["create", "latency"]
    assert _chosen(["latency", "flow"]) == ["flow"]


OWN = {"BREW_DATABASE_URL": "postgresql://127.0.0.1:1/x", "BREW_KAFKA_BROKERS": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--repeat", "0"], {}, "invalid value for '--repeat'"),
        (["--leg", "nothing"], {}, "no leg 'nothing': see `brewctl bench --list`"),
        (["--leg", "create", "--duration", "120"], {}, "--duration and --rate are of the soak: add --leg soak"),
        (["--leg", "soak", "--duration", "5"], {}, "invalid value for '--duration'"),
        (["--leg", "soak", "--rate", "0"], {}, "invalid value for '--rate'"),
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


@pytest.mark.parametrize(("busy", "warned"), [(0.11, True), (0.1, False), (None, False)])
def test_a_machine_that_is_not_idle_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, busy: float | None, warned: bool
) -> None:
    monkeypatch.setattr(machine, "described", lambda *_, **__: {**MACHINE, "others_busy": busy})
    found = command._machine(Settings(brokers=("127.0.0.1:1", "127.0.0.1:2")))
    assert (found["brokers"], found["kafka_client"]) == (2, "kafka-python-ng")
    assert ("other work has 11 % of the cores' time" in capsys.readouterr().err) == warned
