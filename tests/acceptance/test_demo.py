"""The demo, as a newcomer meets it: in a terminal and in a pipe, interrupted, and on servers that are somebody's."""

import itertools
import json
import re
import signal
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest

from brewctl.lab.demo import narration
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, begin, run
from tests.terminal import opened

TOUR = ("demo", "--yes", "--speed", "fast")
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
COLOUR = re.compile(rb"\x1b\[[0-9;]*[34][0-9][;m]")


def test_the_tour_in_a_terminal(rig: Rig, tmp_path: Path) -> None:
    """From act to act by keys; what can't be written is said after the verdict, and the report was."""
    report, full = tmp_path / "demo.svg", tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    arguments = (*TOUR, "--step", "--orders", "40", "--report", str(report), "--picture", str(full))
    with opened(*arguments, env={**rig.env, "NO_COLOR": "1"}) as terminal:
        for act in range(2, 7):
            terminal.wait_for(f"any key: act {act} of 6", timeout_s=60)
            if act == 3:
                assert rig.connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
            if act == 6:
                terminal.wait_for("orders are reserved", "act 5 of 6", "✗ killed", "what happens")
            terminal.press(" ")
        assert terminal.process.wait(60) == 1
        terminal.wait_for("nothing was lost, nothing happened twice", "brewctl: can't write", "No space left on device")
    assert terminal.raw.count(HIDE_CURSOR) == terminal.raw.count(SHOW_CURSOR) == 1
    assert not COLOUR.search(terminal.raw), "NO_COLOR is set"
    _check_picture(report.read_text("utf-8"))


def test_a_tour_that_q_ended_leaves_no_process_behind_and_is_played_again(rig: Rig, tmp_path: Path) -> None:
    """Kafka has the killed node as a member still, and the second tour waits until it hasn't."""
    env = {**rig.env, "BREW_HOME": str(tmp_path)}
    # Not fast: the session of the killed node must last until the second tour looks, on a slow machine too.
    with opened("demo", "--yes", "--step", "--kill-at", "5", env=env) as terminal:
        for act in range(2, 6):
            terminal.wait_for(f"any key: act {act} of 6", timeout_s=60)
            nodes = psutil.Process(terminal.process.pid).children(recursive=True)
            terminal.press("q" if act == 5 else " ")
        assert terminal.process.wait(60) == 130
        terminal.wait_for("brewctl: interrupted")
    assert len(nodes) >= 4
    assert not any(node.is_running() for node in nodes)
    again = begin(*TOUR, env=env)
    assert again.stdout is not None
    assert narration.FORGETS in [line.rstrip() for line in itertools.takewhile(_before_act_2, again.stdout)]
    again.terminate()
    assert "interrupted" in again.communicate(timeout=60)[1]


def _before_act_2(line: str) -> bool:
    return not line.startswith("act 2 ")


def test_a_bare_machine_gets_a_sandbox_for_the_demo_and_no_longer(tmp_path: Path) -> None:
    """With a proxy for the web, an stdout that has no more than ASCII, and Java options for other programs."""
    env = {"BREW_HOME": str(tmp_path), "BREW_DATABASE_URL": "", "BREW_KAFKA_BROKERS": ""}
    env |= {"PYTHONIOENCODING": "ascii:strict", "JAVA_TOOL_OPTIONS": "-Xbogus", "no_proxy": "", "NO_PROXY": ""}
    env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    report = tmp_path / "demo.html"
    shown = run("demo", "--orders", "40", "--speed", "fast", "--report", str(report), env=env, timeout=300)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "the sandbox stops" in shown.stderr
    rows = json.loads(run("status", "--json", env=env).stdout)
    assert len(rows) == 4
    assert [row["pid"] for row in rows] == [None] * 4
    assert run("down", "--purge", env=env).returncode == 0
    _check_lines(shown.stdout)
    _check_report(report.read_text("utf-8"))


def _check_lines(text: str) -> None:
    """What a pipe gets: acts, why, the contract's lines, a chart, the verdict."""
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("act ")] == [
        "act 1 of 6: empty tables and topics",
        "act 2 of 6: five nodes start and share the partitions",
        "act 3 of 6: orders flow",
        "act 4 of 6: kill -9 in the middle",
        "act 5 of 6: the wait and the rebalance",
        "act 6 of 6: the verdict",
    ]
    (kill,) = (at for at, line in enumerate(lines) if re.match(r"kill -9 \d+: inventory-1 ", line))
    moved = lines.index("[inventory-2] partitions assigned [0, 1, 2, 3, 4, 5]", kill)
    assert "Kafka waits 6 s for its heartbeat before it moves partitions 0, 2, 4" in lines[kill:moved]
    assert any(re.match(r"committed offsets 0:\d+, 2:\d+, 4:\d+: ", line) for line in lines[kill:moved])
    assert any(re.match(r"[\d.]+ s after the kill Kafka moves 0, 2, 4 to inventory-2", line) for line in lines[moved:])
    assert "counts: orders=40 outbox_unpublished=0 reservations=40 notifications=40" in lines
    assert any("? kill -9 inventory-1, " in line for line in lines)
    assert any("? rebalance: 0, 2, 4 move to inventory-2, " in line for line in lines)
    assert any(line.startswith("inventory distribution: {inventory-1: ") for line in lines)
    assert lines[-1].startswith("verdict: nothing was lost, nothing happened twice")


def _check_picture(svg: str) -> None:
    told = "\n".join(ET.fromstring(svg).itertext())
    assert re.search(r"kill -9 inventory-1: [\d.]+ s to [\d.]+ s", told)
    assert re.search(r"rebalance: 0, 2, 4 move to inventory-2: [\d.]+ s", told)
    assert "inventory: owner of each partition" in told


def _check_report(page: str) -> None:
    wide, narrow = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    _check_picture(wide)
    _check_picture(narrow)
    assert "each published, reserved and notified exactly once" in page
    assert "Kafka waits 6 s for its heartbeat" in page
    assert "brewctl demo --orders 40 --kill-at 20 --speed fast" in page


@pytest.mark.parametrize(
    ("number", "speed", "session_s"), [(signal.SIGINT, "normal", "15"), (signal.SIGTERM, "fast", "6")]
)
def test_an_interrupted_demo_leaves_no_process_behind(
    rig: Rig, tmp_path: Path, number: signal.Signals, speed: str, session_s: str
) -> None:
    env = {**rig.env, "BREW_HOME": str(tmp_path), "BREW_SESSION_TIMEOUT": "30"}
    process = begin("demo", "--orders", "2000", "--yes", "--speed", speed, env=env)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("counts: "):
            break
    nodes = psutil.Process(process.pid).children(recursive=True)
    assert len(nodes) == 5
    consumers = [command for node in nodes if "consume" in (command := node.cmdline())]
    assert [command[command.index("--session-timeout") + 1] for command in consumers] == [session_s] * 3
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until("the end of all nodes", lambda: not any(node.is_running() for node in nodes), timeout_s=10)
