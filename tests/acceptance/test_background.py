"""The story in one terminal: nodes in the background, on a sandbox and on servers of one's own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from brewctl.lifecycle import wait_until
from tests.acceptance.conftest import brewctl, environment, status
from tests.conftest import run

STORY = ("order", "order", "inventory", "inventory", "notifications")
CAST = ["order-1", "order-2", "inventory-1", "inventory-2", "notification-1"]


@pytest.fixture
def stage(home: Path) -> Iterator[Path]:
    """The home, without nodes of another test's, before and after."""
    yield home
    brewctl(home, "stop", "--all")
    assert brewctl(home, "up").returncode == 0


def test_the_story_in_one_terminal(stage: Path) -> None:
    started = brewctl(stage, "start", *STORY)
    assert started.returncode == 0, started.stderr
    assert [line.split()[0] for line in started.stdout.splitlines()] == ["node", *CAST]
    assert started.stderr == "next: brewctl logs --follow; `brewctl stop --all`, or `brewctl down`, ends them\n"

    # Without an address: those in the background take turns.
    created = brewctl(stage, "create-order", "--customer", "c1", "--count", "4")
    assert created.returncode == 0, created.stderr
    done = re.compile(r"counts: orders=(\d+) outbox_unpublished=0 reservations=\1 notifications=\1\n")
    wait_until("all effects", lambda: bool(done.fullmatch(brewctl(stage, "counts").stdout)), timeout_s=60)

    rows = status(stage)
    assert {name: row["state"] for name, row in rows.items() if "role" in row} == dict.fromkeys(CAST, "runs")
    addresses = environment(stage)["BREW_ORDER_ADDRS"]
    assert addresses == ",".join(f"127.0.0.1:{rows[name]['port']}" for name in CAST[:2])
    lines = brewctl(stage, "logs").stdout.splitlines()
    for name, address in zip(CAST[:2], addresses.split(","), strict=True):
        assert f"{name:<14} | [{name}] order-service listening on {address}" in lines
        assert any(line.startswith(f"{name:<14} | ts=") and " event=published " in line for line in lines)

    # They would take part in it.
    demo = brewctl(stage, "demo")
    assert demo.returncode == 1
    assert demo.stderr == f"brewctl: nodes run in the background ({', '.join(CAST)}): run `brewctl stop --all`\n"
    assert done.fullmatch(brewctl(stage, "counts").stdout), "emptied"

    killed = psutil.Process(int(str(rows["inventory-1"]["pid"])))
    killed.kill()
    psutil.wait_procs([killed], timeout=10)
    shown = brewctl(stage, "status")
    assert shown.returncode == 1
    assert re.search(r"^inventory-1 .* gone ", shown.stdout, re.MULTILINE)
    assert re.search(r"^inventory-2 .* runs ", shown.stdout, re.MULTILINE)

    stopped = brewctl(stage, "stop", "order-2", "inventory-1")
    assert stopped.returncode == 1
    assert stopped.stdout.splitlines() == [
        "[order-2] order-service stopped.",
        f"[inventory-1] had ended before; its log is {stage}/logs/inventory-1.log",
    ]
    assert "order-2" not in status(stage)

    down = brewctl(stage, "down")
    assert down.returncode == 0, down.stderr
    assert re.search(r"^\[notification-1\] notification-service stopped\. processed=\d+ ", down.stdout, re.MULTILINE)
    assert down.stdout.endswith("stopped order-1, inventory-2, notification-1, kafka-1, postgres\n")


def test_nodes_on_servers_of_ones_own(home: Path, tmp_path: Path) -> None:
    """No sandbox in their home: what is there is nodes. One that can't start leaves the others running."""
    env = {**environment(home), "BREW_HOME": str(tmp_path), "BREW_SESSION_TIMEOUT": "soon"}
    try:
        started = run("start", "order", "inventory", env=env)
        assert started.returncode == 1
        assert [line.split()[0] for line in started.stdout.splitlines()] == ["node", "order-1"]
        first, *log, last = started.stderr.splitlines()
        assert first == "inventory-1 ended at its start"
        assert "BREW_SESSION_TIMEOUT" in log[0]
        assert last == "brewctl: inventory-1 did not get ready: see `brewctl status` for what runs"
        rows = json.loads(run("status", "--json", env=env).stdout)
        assert [(row["name"], row["state"]) for row in rows] == [("order-1", "runs"), ("inventory-1", "gone")]
    finally:
        down = run("down", "--purge", env=env)
    assert down.returncode == 0
    assert down.stdout.splitlines()[-2:] == ["stopped order-1", f"removed the data in {tmp_path}"]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
