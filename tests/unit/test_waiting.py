"""`--wait`: what is waited for, for how long, and what is said of it."""

import math
import subprocess
import sys
import threading

import pytest

from brewctl import lifecycle, waiting
from brewctl.delivery import database
from brewctl.errors import BrewError, NotYetError, PortError, UnreachableError, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60", 60), (" 0.5 ", 0.5), ("0", 0), ("", 0), (0, 0), ("forever", math.inf), ("Forever", math.inf)],
)
def test_a_number_of_seconds_or_forever(text: object, expected: float) -> None:
    assert waiting.seconds(text) == expected
    assert waiting.seconds(waiting.written(expected)) == expected


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e3", "1_0", "60s", "soon", "٣", "0x10", "1,5", "9" * 20])
def test_anything_else_is_misuse(text: str) -> None:
    with pytest.raises(UsageError, match="is no number of seconds: use a number such as 60, or forever"):
        waiting.seconds(text)


def test_each_reason_is_told_once_and_again_when_it_changes() -> None:
    away, starting, missing = UnreachableError("away"), UnreachableError("starting"), NotYetError("no tables")
    outcomes: list[BrewError | str] = [away, away, starting, starting, away, missing, "there"]
    told: list[BrewError] = []

    def attempt() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BrewError):
            raise outcome
        return outcome

    assert waiting.until_there(attempt, 600, threading.Event(), tell=told.append) == "there"
    assert told == [away, starting, away, missing]


def test_once_time_is_up_the_last_error_is_raised() -> None:
    tries: list[BrewError] = []

    def attempt() -> None:
        tries.append(UnreachableError(f"away {len(tries)}"))
        raise tries[-1]

    with pytest.raises(UnreachableError) as caught:
        waiting.until_there(attempt, 0.3, threading.Event(), tell=lambda _error: None)
    assert caught.value is tries[-1]
    assert len(tries) > 1


@pytest.mark.parametrize("error", [UsageError("wrong"), BrewError("taken"), PortError("127.0.0.1", 1), ValueError()])
def test_what_no_waiting_mends_is_raised_at_once(error: Exception) -> None:
    tries = 0

    def attempt() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(type(error)):
        waiting.until_there(attempt, math.inf, threading.Event())
    assert tries == 1


def test_a_role_that_had_started_is_not_started_again() -> None:
    stop = threading.Event()
    plays = 0

    def actor() -> None:
        raise UnreachableError("gone")

    def run() -> None:
        nonlocal plays
        plays += 1
        lifecycle.run_together({"actor": actor}, stop, drain_timeout_s=30)

    with pytest.raises(UnreachableError, match="gone"):
        waiting.start(run, math.inf, stop, leaves=False)
    assert plays == 1


def test_a_stop_before_the_start_is_no_error() -> None:
    stop = threading.Event()

    def run() -> None:
        stop.set()
        raise UnreachableError("away")

    waiting.start(run, math.inf, stop, leaves=False)


def test_help_does_not_load_it() -> None:
    code = "import sys, brewctl.cli.main; sys.exit('brewctl.waiting' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://brew@h/brew", "h:5432/brew"),
        ("postgresql://brew@h1:1,h2:2/brew?target_session_attrs=read-write", "h1:1,h2:2/brew"),
        ("postgresql://brew@h1,h2:2/brew", "h1:5432,h2:2/brew"),
        ("host=h1,h2 port=7 dbname=brew", "h1:7,h2:7/brew"),
        ("postgresql://brew@[::1]:1,h2:2/brew", "::1:1,h2:2/brew"),
    ],
)
def test_several_hosts_are_each_named_with_their_port(url: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPORT", raising=False)
    assert database.place(url) == expected


@pytest.mark.parametrize("url", ["host=h1,h2,h3 port=1,2 dbname=brew", "postgresql://h1:1,h2:99999/brew"])
def test_hosts_and_ports_that_do_not_fit_are_misuse(url: str) -> None:
    with pytest.raises(UsageError, match="BREW_DATABASE_URL has"):
        database.place(url)
