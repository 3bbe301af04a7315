"""`brewctl doctor` without servers: what each thing found is judged to be, and how it is said."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.core
import typer.main
from typer.testing import CliRunner

from brewctl import doctor
from brewctl.cli.main import make_app, root_command
from brewctl.doctor import (
    Finding,
    Verdict,
    examination,
    orders,
)
from brewctl.doctor.finding import ok, warn
from brewctl.errors import BrewError
from tests.conftest import run
from tests.order_server import serving

NOWHERE = {
    "BREW_DATABASE_URL": "postgresql://brew:hunter2@127.0.0.1:1/shop",
    "BREW_KAFKA_BROKERS": "127.0.0.1:1",
    "BREW_ORDER_ADDRS": "127.0.0.1:1",
}


def verdicts(*findings: Finding) -> list[str]:
    return [finding.verdict.value for finding in findings]


@pytest.fixture
def listener() -> Iterator[str]:
    """Somebody's TCP server, which hangs up on everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    ("address", "verdict", "mend"),
    [
        ("127.0.0.1:1", "warn", "run `brewctl serve order --port 1`"),
        ("nowhere.invalid:50081", "fail", "BREW_ORDER_ADDRS"),
    ],
)
def test_nobody_listens(address: str, verdict: str, mend: str) -> None:
    (finding,) = orders.check(address)
    assert verdicts(finding) == [verdict]
    assert mend in finding.mend


def test_something_else_listens(listener: str) -> None:
    (finding,) = orders.check(listener)
    assert finding.verdict is Verdict.FAIL
    assert "answers no health check" in finding.found
    assert f"ss -ltnp sport = :{listener.rpartition(':')[2]}" in finding.mend


def test_another_grpc_server_listens() -> None:
    with serving() as server:
        (finding,) = orders.check(server.address)
    assert finding.verdict is Verdict.FAIL
    assert "no order-service" in finding.found


def findings_of(ask: Callable[[], Iterator[Finding]], *, within_s: float = 10) -> list[Finding]:
    subjects = [examination.Subject("first", ask), examination.Subject("second", lambda: iter([ok("it", "is")]))]
    return list(examination.together(subjects, within_s=within_s))


def test_what_goes_wrong_is_a_finding_after_those_before() -> None:
    def ask(error: Exception) -> Iterator[Finding]:
        yield ok("one", "is there")
        raise error

    for error, found in (
        (BrewError("away", hint="run it"), Finding("first", Verdict.FAIL, "away", "run it")),
        (
            KeyError("x"),
            Finding("first", Verdict.FAIL, "unexpected KeyError: 'x'", "it is a fault of brewctl: report it"),
        ),
    ):
        assert findings_of(lambda error=error: ask(error)) == [ok("one", "is there"), found, ok("it", "is")]  # type: ignore[misc]


def test_one_that_says_nothing_holds_up_no_other() -> None:
    over = threading.Event()

    def ask() -> Iterator[Finding]:
        over.wait(60)
        yield ok("late", "too late")

    try:
        late, other = findings_of(ask, within_s=1)
    finally:
        over.set()
    assert (late.check, late.verdict) == ("first", Verdict.FAIL)
    assert other.verdict is Verdict.OK


def shown(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> list[str]:
    """What the command prints of these findings."""
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(findings))
    return CliRunner().invoke(make_app(["doctor"]), ["doctor"], env=NOWHERE).stdout.splitlines()


def test_a_line_fits_and_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, warn("group", "a\x1b[2J\n" + "word " * 40, mend="run `" + "x" * 200 + "`"))
    assert all(len(line) <= 80 and line.isprintable() for line in lines)


def test_a_command_is_not_broken_and_the_last_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "`ALTER DATABASE shop RESET synchronous_commit;`"
    mend = f"first make sure that nobody uses it, then in psql: {command}"
    lines = shown(monkeypatch, ok("a", "x"), ok("b", "x"), warn("c", "x", mend=mend))
    assert command in lines[-2]
    assert lines[-1] == "2 ok, 1 warning, 0 failures"


def test_every_command_that_it_names_exists() -> None:
    root = root_command()
    source = "".join(path.read_text("utf-8") for path in Path(doctor.__file__).parent.glob("*.py"))
    named = re.findall(r"`brewctl ([a-z]+)(?: ([a-z]+))?", source)
    assert {("dlq", "list"), ("start", "order"), ("up", "")} <= {*named}
    for name, inner in named:
        group = root.commands[name]
        assert not isinstance(group, typer.core.TyperGroup) or inner in group.commands


def test_a_bare_machine(tmp_path: Path) -> None:
    done = run("doctor", env={"BREW_HOME": str(tmp_path), **NOWHERE})
    assert (done.returncode, done.stderr) == (1, "")
    failures = re.findall(r"^fail  (\S+).*\n      → (.*)$", done.stdout, re.MULTILINE)
    assert failures == [
        ("postgres", "start it (`brewctl up` where it is the sandbox's), or correct"),
        ("kafka", "start them (`brewctl up` where they are the sandbox's), or correct"),
    ]
    assert "\n      → run `brewctl serve order --port 1`, or set BREW_ORDER_ADDRS" in done.stdout
    assert re.search(r"^\d ok, [12] warnings?, 2 failures\n\Z", done.stdout, re.MULTILINE)
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert "hunter2" not in done.stdout


def test_where_a_damaged_state_hides_the_servers_they_are_not_asked(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    done = run("doctor", "--json", env={"BREW_HOME": str(tmp_path), **NOWHERE})
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert told["ok"] is False
    (failure,) = (finding for finding in told["findings"] if finding["verdict"] == "fail")
    assert (failure["check"], failure["mend"]) == (
        "sandbox",
        "run `brewctl down --purge`, which deletes the sandbox's data",
    )
    assert {"postgres", "kafka", "order-service"}.isdisjoint(finding["check"] for finding in told["findings"])
