"""The demo, as a newcomer meets it: in a terminal and in a pipe, interrupted, and on servers that are somebody's."""

import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest

from brewctl.lab.demo import narration
from brewctl.lifecycle import wait_until
from tests.conftest import BREWCTL, Rig, begin, run

WIDTH, HEIGHT = 80, 24
TIMEOUT_S = 60.0
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The binary in a terminal of 80 columns and 24 lines, and who sits before it."""

    def __init__(self, typist: int, terminal: int, *arguments: str, env: dict[str, str]) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        self._typist = typist
        self._shown = b""
        own = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self.process = subprocess.Popen(
            [BREWCTL, *arguments],
            env={**own, **env, "TERM": "xterm"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )

    @property
    def shown(self) -> str:
        """All that was written so far."""
        return self._shown.decode(errors="replace")

    def press(self, key: str) -> None:
        os.write(self._typist, key.encode())

    def await_prompt(self, act: int) -> None:
        prompt = f"any key: act {act} of 6"
        self._read_until(prompt, lambda: prompt in self.shown)

    def await_end(self) -> None:
        self._read_until("end", lambda: self.process.poll() is not None)
        while self._read(0):
            pass

    def _read_until(self, what: str, seen: Callable[[], bool]) -> None:
        """Read on: who writes waits for who reads."""
        deadline = time.monotonic() + TIMEOUT_S
        while not seen():
            assert time.monotonic() < deadline, f"no {what} in {CONTROL.sub('', self.shown)[-4000:]}"
            self._read(0.1)

    def _read(self, patience_s: float) -> bool:
        there, _, _ = select.select([self._typist], [], [], patience_s)
        if there:
            self._shown += os.read(self._typist, 65_536)
        return bool(there)


@contextmanager
def terminal(*arguments: str, env: dict[str, str]) -> Iterator[Terminal]:
    """A terminal that must be in the end what it was."""
    typist, ours = pty.openpty()
    before = termios.tcgetattr(ours)
    shown = Terminal(typist, ours, *arguments, env=env)
    try:
        yield shown
        assert termios.tcgetattr(ours) == before
        assert shown.shown.count("\x1b[?25l") == shown.shown.count("\x1b[?25h") > 0, "the cursor is there again"
    finally:
        shown.process.kill()
        shown.process.wait()
        os.close(ours)
        os.close(typist)


def test_the_tour_in_a_terminal(rig: Rig, tmp_path: Path) -> None:
    """From act to act by keys; what can't be written is said after the verdict, and the report was."""
    report, full = tmp_path / "demo.svg", tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    files = ("--report", str(report), "--picture", str(full))
    with terminal("demo", "--yes", "--step", "--speed", "fast", "--orders", "40", *files, env=rig.env) as shown:
        for act in range(2, 7):
            shown.await_prompt(act)
            shown.press(" ")
        shown.await_end()
        text = CONTROL.sub("", shown.shown)
    assert shown.process.returncode == 1
    assert text.rstrip().splitlines()[-1] == f"brewctl: can't write {full} (No space left on device)"
    assert "verdict: nothing was lost, nothing happened twice" in text
    assert "Kafka waits 6 s for its heartbeat before it moves partitions 0, 2, 4" in text
    assert max(map(len, re.split(r"[\r\n]+", text.partition("verdict: ")[0]))) <= WIDTH
    redrawn = re.findall(r"(?:\x1b\[1A\x1b\[2K)+", shown.shown)
    assert max(run.count("\x1b[1A") for run in redrawn) < HEIGHT
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9][;m]", shown.shown), "NO_COLOR is set"
    _check_picture(report.read_text("utf-8"))


def test_a_tour_that_q_ended_leaves_no_process_behind_and_is_played_again(rig: Rig, tmp_path: Path) -> None:
    """Kafka has the killed node as a member still, and the second tour waits until it hasn't."""
    tour, env = ("demo", "--yes", "--speed", "fast"), {**rig.env, "BREW_HOME": str(tmp_path)}
    with terminal(*tour, "--step", "--kill-at", "5", env=env) as shown:
        for act in range(2, 6):
            shown.await_prompt(act)
            nodes = psutil.Process(shown.process.pid).children(recursive=True)
            shown.press("q" if act == 5 else " ")
        shown.await_end()
    assert shown.process.returncode == 130
    assert CONTROL.sub("", shown.shown).rstrip().endswith("brewctl: interrupted")
    assert len(nodes) >= 4
    assert not any(node.is_running() for node in nodes)
    again = begin(*tour, env=env)
    assert again.stdout is not None
    assert narration.FORGETS in [line.rstrip() for line in itertools.takewhile(_before_act_2, again.stdout)]
    again.terminate()
    assert "interrupted" in again.communicate(timeout=60)[1]


def _before_act_2(line: str) -> bool:
    return not line.startswith("act 2 ")


def test_a_bare_machine_gets_a_sandbox_for_the_demo_and_no_longer(tmp_path: Path) -> None:
    env = {"BREW_HOME": str(tmp_path), "BREW_DATABASE_URL": "", "BREW_KAFKA_BROKERS": ""}
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
    assert any("▲ kill -9 inventory-1, " in line for line in lines)
    assert any("▲ rebalance: 0, 2, 4 move to inventory-2, " in line for line in lines)
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
