"""`brewctl top` as its users have it: a real run in a terminal, on a sandbox that its keys disturb."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from brewctl.config import resolve
from brewctl.delivery.topics import topics
from tests.acceptance.conftest import brewctl, environment
from tests.conftest import Rig, run
from tests.terminal import Terminal, opened

DOWN, END = "\x1b[B", "\x1b[1;5F"


def shown(terminal: Terminal, counter: str) -> int:
    """The value of a counter."""
    found = re.search(rf"^{counter} +~?([\d,]+)", terminal.text, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


def select(terminal: Terminal, name: str) -> None:
    """Move to a process with the arrow keys."""
    rows = [line.split()[0] for line in terminal.lines if re.search(r" [●◌‖?○✗] \w+", line) and line[0].isalpha()]
    terminal.press(*["\x1b[A"] * len(rows), *[DOWN] * rows.index(name))


@pytest.fixture
def quiet(home: Path) -> None:
    """Groups of which nobody is a member any more who was killed by a test before."""
    topics.await_empty_groups(resolve({}, environment(home), {}), timeout_s=30)


@pytest.mark.usefixtures("quiet")
def test_watched_and_disturbed(home: Path) -> None:
    assert brewctl(home, "db", "init", "--reset").returncode == 0
    env = {"BREW_HOME": str(home)}
    try:
        with opened("top", env=env) as terminal:
            terminal.wait_for("orders", "kafka-1", "postgres", "in sync 6/6", "q quit")

            terminal.press("o", "i", "n")
            for name in ("order-1", "inventory-1", "notification-1"):
                terminal.wait_for(name)
            terminal.wait_for("inventory: 0 1 2 3 4 5 assigned to inventory-1")
            terminal.wait_for("● runs    port ")
            terminal.press("+", "+", "l")
            terminal.wait_for("load 100/s")
            terminal.wait_until("orders", lambda: shown(terminal, "reservations") > 100)

            select(terminal, "inventory-1")
            terminal.press("p")
            terminal.wait_for("inventory-1", "‖ paused")
            terminal.press("p")
            terminal.wait_for("resumed")
            select(terminal, "order-1")
            terminal.press("k")
            terminal.wait_for("killed: kill -9", "✗ killed", "load waits")
            terminal.press("r")
            terminal.wait_for("started: recovered", "● runs    port ", "load 100/s")

            select(terminal, "postgres")
            terminal.press("k")
            terminal.wait_for("✗ out of date: postgres ")
            terminal.press("r")
            terminal.wait_for("postgres answers again: recovered", timeout_s=60)
            terminal.press("l")
            terminal.wait_for("no load")
            select(terminal, "notification-1")
            terminal.press("t")
            terminal.wait_for("notification-1", "stopped: it drained", "○ stopped")

            terminal.resize(60, 20)
            terminal.wait_for("top needs 80 x 24, this is 60 x 20: make it larger")
            terminal.resize(80, 24)
            terminal.wait_for("q quit")
            terminal.press("q")
            assert terminal.wait() == 0
            assert re.search(r"load: orders .*\d acknowledged", terminal.text)
        assert "inventory-1" in brewctl(home, "status").stdout
        picture = home / "top.svg"
        taken = brewctl(home, "top", "--picture", str(picture), "--after", "1")
        assert taken.returncode == 0, taken.stderr
        drawn = "".join(ET.parse(picture).getroot().itertext()).replace("\xa0", " ")
        assert "inventory-1" in drawn
        assert "@font-face" not in drawn
        picture.unlink()
    finally:
        brewctl(home, "stop", "--all")


def test_servers_of_somebody_else_are_only_looked_at(rig: Rig, tmp_path: Path) -> None:
    with opened("top", env={**rig.env, "BREW_HOME": str(tmp_path), "NO_COLOR": "1"}) as terminal:
        terminal.wait_for("kafka-1", "postgres", "in sync 6/6")
        terminal.press("k", "o", "l", "r")
        rig.connection.execute("INSERT INTO notifications_log VALUES (uuidv7(), 'n', 'push')")
        terminal.wait_for("notifications            1")
        assert "kill" not in terminal.text
        assert "load" not in terminal.text.replace("no load", "")
        assert not re.search(rb"\x1b\[[\d;]*[349][0-7]m", terminal.raw), "colours"
        terminal.press("\x03")
        assert terminal.wait() == 130


BROKEN = """
from brewctl.lab.top.observer import Observer
def look(self):
    raise KeyError("what nobody foresaw")
Observer.look = look
"""


def test_an_unexpected_error_is_one_line_and_the_terminal_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    env = {"BREW_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path), "BREW_DATABASE_URL": "", "BREW_KAFKA_BROKERS": ""}
    with opened("top", env=env) as terminal:
        assert terminal.wait() == 1
        assert "brewctl: unexpected KeyError: 'what nobody foresaw': run it again as `brewctl" in terminal.text
        assert "Traceback" not in terminal.text


def test_a_terminal_that_is_too_small_and_none_at_all(tmp_path: Path) -> None:
    env = {"BREW_HOME": str(tmp_path)}
    with opened("top", env=env, columns=79) as terminal:
        assert terminal.wait() == 2
        assert "brewctl: top needs a terminal of 80 x 24, this one is 79 x 24: make it larger" in terminal.text
    piped = run("top", env=env)
    assert piped.returncode == 2
    assert piped.stderr.startswith("brewctl: top needs a terminal: use `brewctl counts --watch`")
