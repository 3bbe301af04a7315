"""Background nodes, with a program of our own in their place: numbered, waited for, paused, killed, drained."""

import dataclasses
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brewctl.config import Settings
from brewctl.errors import BrewError
from brewctl.lab.play import background
from brewctl.lab.play.background import Condition, Ending
from brewctl.lifecycle import wait_until
from brewctl.sandbox import cluster, health, processes, state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

# Works until SIGTERM, as a role does; how, its environment says.
PROGRAM = """
import os, signal, socket, sys

def stop(*_):
    if how != "deaf":
        print("[node] stopped. processed=3", flush=True)
        sys.exit()

how = os.environ.get("HOW", "")
signal.signal(signal.SIGTERM, stop)
signal.alarm(300)  # whatever becomes of the test
if how == "broken":
    sys.exit("brewctl: no room")
if how == "taken":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError:
        sys.exit(f"brewctl: port {port} on 127.0.0.1 can't be listened on: is it taken?")
if how != "slow":
    print("[node] partitions assigned [] listening on 127.0.0.1:1", flush=True)
while True:
    signal.pause()
"""
STORY = ["order", "order", "inventory", "inventory", "notifications"]
SETTINGS = Settings(database_url="postgresql://u:hunter2@127.0.0.1:1/d")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    def program(name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, *arguments, name]

    monkeypatch.setattr(background, "program", program)
    yield tmp_path
    processes.end(background.nodes(tmp_path).values(), ((signal.SIGKILL, 10.0),))


def start(home: Path, *roles: str, name: str = "") -> list[str]:
    """Start nodes and wait until they are ready; their names."""
    started = background.start(home, SETTINGS, roles, name=name)
    for node in started:
        background.wait_ready(node)
    return [node.name for node in started]


def kill(home: Path, name: str) -> None:
    node = background.nodes(home)[name]
    background.send(home, name, signal.SIGKILL)
    wait_until("its end", lambda: processes.find(node) is None, timeout_s=60, every_s=0.01)


def condition(node: Server) -> Condition:
    return background._condition(processes.find(node))


def test_they_are_numbered_as_in_the_story(home: Path) -> None:
    names = ["order-1", "order-2", "inventory-1", "inventory-2", "notification-1"]
    assert start(home, *STORY) == names
    assert list(background.nodes(home)) == names
    assert {node.role for node in background.nodes(home).values()} == set(STORY)
    assert start(home, "inventory", "order") == ["inventory-3", "order-3"]


def test_a_number_that_is_free_is_taken_again(home: Path) -> None:
    start(home, "inventory", "inventory", "inventory")
    background.stop(home, ["inventory-1"])
    kill(home, "inventory-2")
    assert start(home, "inventory", "inventory", "inventory") == ["inventory-1", "inventory-2", "inventory-4"]
    assert list(background.nodes(home)) == ["inventory-3", "inventory-1", "inventory-2", "inventory-4"]


def test_order_nodes_take_the_first_free_ports(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        monkeypatch.setattr(background, "_PORTS", range(busy, busy + 200))
        first, second = background.start(home, SETTINGS, ["order", "order"])
    assert busy < first.port < second.port
    process = processes.find(second)
    assert process is not None
    assert process.cmdline()[-4:] == ["order", "--port", str(second.port), "order-2"]
    assert state.endpoints(home) == {"order_addrs": f"127.0.0.1:{first.port},127.0.0.1:{second.port}"}
    kill(home, "order-1")
    assert state.endpoints(home) == {"order_addrs": f"127.0.0.1:{second.port}"}


def test_one_whose_port_is_taken_meanwhile_gets_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW", "taken")
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        monkeypatch.setattr(background, "_PORTS", range(busy, busy + 200))
        with monkeypatch.context() as patch:
            patch.setattr(processes, "is_free", lambda _port: True)
            (node,) = background.start(home, SETTINGS, ["order"])
        assert node.port == busy
        settled = background.settle(home, SETTINGS, node)
    assert (settled.name, settled.port) == ("order-1", background.nodes(home)["order-1"].port)
    assert settled.port > busy
    monkeypatch.setenv("HOW", "slow")
    with pytest.raises(BrewError, match="order-2 is not ready yet"):
        background.settle(home, SETTINGS, background.start(home, SETTINGS, ["order"], name="order-2")[0], timeout_s=0)


def test_no_port_is_free(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        monkeypatch.setattr(background, "_PORTS", range(busy, busy + 1))
        with pytest.raises(BrewError, match=f"no port from {busy} to {busy} is free"):
            background.start(home, SETTINGS, ["order"])


def test_a_name_that_runs_is_refused_and_nothing_is_started(home: Path) -> None:
    start(home, "inventory", name="mine")
    with pytest.raises(BrewError, match="mine already runs"):
        background.start(home, SETTINGS, ["order"], name="mine")
    assert [node.role for node in background.nodes(home).values()] == ["inventory"]
    kill(home, "mine")
    assert start(home, "order", name="mine") == ["mine"]


def test_one_that_can_not_be_remembered_does_not_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[Server] = []

    def save(_home: Path, known: State) -> None:
        spawned.extend(known.nodes.values())
        raise BrewError("no space left on device")

    monkeypatch.setattr(state, "save", save)
    with pytest.raises(BrewError, match="no space left"):
        background.start(home, SETTINGS, ["inventory"])
    (node,) = spawned
    assert processes.find(node) is None


def test_secrets_are_in_the_environment_alone(home: Path) -> None:
    (node,) = background.start(home, SETTINGS, ["inventory"])
    process = processes.find(node)
    assert process is not None
    assert process.environ()["BREW_DATABASE_URL"] == SETTINGS.database_url
    assert not any("hunter2" in argument for argument in process.cmdline())
    assert "hunter2" not in (home / "state.json").read_text()


def test_ready_counts_from_its_own_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log goes on where the one before of that name ended, whose lines say nothing of this one."""
    start(home, "inventory")
    kill(home, "inventory-1")
    monkeypatch.setenv("HOW", "slow")
    (node,) = background.start(home, SETTINGS, ["inventory"])
    with pytest.raises(BrewError, match="inventory-1 is not ready yet"):
        background.wait_ready(node, timeout_s=0)
    assert condition(node) == Condition.RUNS


def test_one_that_ends_at_its_start_shows_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW", "broken")
    (node,) = background.start(home, SETTINGS, ["inventory"])
    with pytest.raises(BrewError) as refused:
        background.wait_ready(node)
    assert str(refused.value) == (
        f"inventory-1 ended at its start\n  brewctl: no room\nthe whole log is {home}/logs/inventory-1.log"
    )


def test_all_drain_at_the_same_time_paused_ones_too_and_say_their_last_line(home: Path) -> None:
    start(home, "inventory", "inventory", "inventory")
    background.send(home, "inventory-1", signal.SIGSTOP)
    paused = background.nodes(home)["inventory-1"]
    wait_until("the pause", lambda: condition(paused) == Condition.PAUSED, timeout_s=60, every_s=0.01)
    kill(home, "inventory-2")
    rows = {row.name: row for row in background.status(home)}
    assert {name: row.state for name, row in rows.items()} == {
        "inventory-1": Condition.PAUSED,
        "inventory-2": Condition.GONE,
        "inventory-3": Condition.RUNS,
    }
    assert rows["inventory-2"].pid is None
    assert rows["inventory-3"].memory_bytes > 0
    stopped = background.stop(home, ["inventory-1", "inventory-2", "inventory-3", "inventory-1"])
    assert [node.ending for node in stopped] == [Ending.DRAINED, Ending.GONE, Ending.DRAINED]
    assert stopped[0].last_line == stopped[2].last_line == "[node] stopped. processed=3"
    assert background.nodes(home) == {}


def test_one_that_does_not_drain_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW", "deaf")
    start(home, "inventory")
    node = background.nodes(home)["inventory-1"]
    (stopped,) = background.stop(home, ["inventory-1"], within_s=0.1)
    assert stopped.ending == Ending.KILLED
    assert processes.find(node) is None
    assert background.nodes(home) == {}


def test_a_name_that_is_not_known_stops_nothing(home: Path) -> None:
    with pytest.raises(BrewError, match="no node 'nope' in the background: none was started"):
        background.stop(home, ["nope"])
    assert not (home / "lock").exists()
    start(home, "inventory")
    with pytest.raises(BrewError, match="no node 'nope' in the background: there are inventory-1"):
        background.stop(home, ["inventory-1", "nope"])
    assert background.status(home)[0].state == Condition.RUNS


def test_no_signal_reaches_whoever_has_its_pid_now(home: Path) -> None:
    start(home, "inventory")
    known = state.load(home)
    assert known is not None
    node = known.nodes["inventory-1"]
    known.nodes["inventory-1"] = dataclasses.replace(node, birth="", started=node.started - 60)
    state.save(home, known)
    with pytest.raises(BrewError, match="inventory-1 is gone"):
        background.send(home, "inventory-1", signal.SIGKILL)
    assert background.stop(home, ["inventory-1"])[0].ending == Ending.GONE
    assert processes.find(node) is not None
    processes.end([node], ((signal.SIGKILL, 10.0),))


def test_the_sandbox_ends_without_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes down a sandbox that he brought up ends no node; nothing is removed below one, known or not."""
    start(home, "inventory")
    node = background.nodes(home)["inventory-1"]
    assert cluster.down(home) == []
    assert health.of_servers(home) == []
    assert condition(node) == Condition.RUNS
    assert background.nodes(home) == {"inventory-1": node}
    monkeypatch.setattr(cluster, "_LAST_CHILDREN_S", 0)
    known = (home / "state.json").read_text()
    for content in (known, "{"):
        (home / "state.json").write_text(content)
        with pytest.raises(BrewError, match=f"is still used by process {node.pid}: kill {node.pid}, then try again"):
            cluster.down(home, purge=True)
    (home / "state.json").write_text(known)


def test_no_home_yet(tmp_path: Path) -> None:
    home = tmp_path / "absent"
    assert background.nodes(home) == {}
    assert background.status(home) == []
    assert background.stop(home, []) == []
    assert not home.exists()
