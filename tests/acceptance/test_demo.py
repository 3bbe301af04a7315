"""The demo, as a newcomer meets it: in a pipe, interrupted, and on servers that are somebody's."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from brewctl.lifecycle import wait_until
from tests.conftest import Rig, begin, run


def test_the_demo_ends_with_a_verdict(rig: Rig) -> None:
    shown = rig.brewctl("demo", "--orders", "40", "--kill-at", "20", "--yes", timeout=180)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    lines = shown.stdout.splitlines()
    assert any(line.startswith("kill -9 ") and "inventory-1" in line for line in lines)
    assert "counts: orders=40 outbox_unpublished=0 reservations=40 notifications=40" in lines
    assert any(line.startswith("inventory distribution: {inventory-1: ") for line in lines)
    assert lines[-1].startswith("verdict: nothing was lost, nothing happened twice")
    assert "\x1b" not in shown.stdout


def test_a_bare_machine_gets_a_sandbox_for_the_demo_and_no_longer(tmp_path: Path) -> None:
    env = {"BREW_HOME": str(tmp_path), "BREW_DATABASE_URL": "", "BREW_KAFKA_BROKERS": ""}
    shown = run("demo", "--orders", "10", env=env, timeout=300)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "verdict: nothing was lost" in shown.stdout
    assert "the sandbox stops" in shown.stderr
    rows = json.loads(run("status", "--json", env=env).stdout)
    assert len(rows) == 4
    assert [row["pid"] for row in rows] == [None] * 4
    assert run("down", "--purge", env=env).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(rig: Rig, tmp_path: Path, number: signal.Signals) -> None:
    process = begin("demo", "--orders", "2000", "--yes", env={**rig.env, "BREW_HOME": str(tmp_path)})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("counts: "):
            break
    nodes = psutil.Process(process.pid).children(recursive=True)
    assert len(nodes) == 5
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until("the end of all nodes", lambda: not any(node.is_running() for node in nodes), timeout_s=10)
