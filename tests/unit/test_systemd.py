"""sd_notify: what is sent where, and that a socket which can't be used is a warning and never the end."""

import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from brewctl.lifecycle import wait_until
from brewctl.probes import heartbeat, systemd
from brewctl.probes.health import Health
from brewctl.probes.heartbeat import Loop
from brewctl.probes.pages import Answer
from brewctl.roles import observing
from tests.logged import captured
from tests.notified import Listener, listening

WATCHDOG_S = 0.1
READY = ["READY=1", "STATUS=ready"]
STOPPING = ["STOPPING=1", "STATUS=drains: what is in hand is finished"]


@pytest.fixture(autouse=True)
def no_other_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of other tests of this process are none of ours."""
    monkeypatch.setattr(heartbeat, "_loops", type(heartbeat._loops)())
    monkeypatch.setattr(heartbeat, "_dead", [])


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = tmp_path / "notify" if request.param == "path" else f"@brewctl-test-{uuid.uuid4().hex}"
    with listening(address) as found:
        yield found


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def test_ready_and_stopping_come_once_each_also_at_an_abstract_address(
    listener: Listener, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.name)
    health = Health(stop)
    with observing.managed(stop, health):
        assert "NOTIFY_SOCKET" not in os.environ, "processes that are started from here would tell in its place"
        health.waits("postgres is\naway")
        health.up()
        listener.wait_for("READY")
        stop.set()
        listener.wait_for("STOPPING")
    listener.read_all()
    assert [lines for _, lines in listener.came] == [["STATUS=waits: postgres is away"], READY, STOPPING]
    assert {pid for pid, _ in listener.came} == {os.getpid()}


def test_a_process_that_ends_by_itself_says_that_it_stops(listener: Listener, stop: threading.Event) -> None:
    health = Health(stop)
    with systemd.told(stop, health.livez, {"NOTIFY_SOCKET": listener.name}):
        pass
    stop.set()
    listener.read_all()
    assert [lines for _, lines in listener.came] == [STOPPING]


def test_the_watchdog_hears_of_a_process_whose_loops_move_and_nothing_of_one_that_hangs(
    listener: Listener, stop: threading.Event
) -> None:
    environ = {
        "NOTIFY_SOCKET": listener.name,
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        "WATCHDOG_PID": str(os.getpid()),
    }
    loop = Loop("publisher", within_s=600)
    looks: list[Answer] = []

    def livez() -> Answer:
        looks.append(Health(stop).livez())
        return looks[-1]

    with systemd.told(stop, livez, environ) as manager:
        assert environ == {}
        assert manager.watchdog_s == pytest.approx(WATCHDOG_S)
        with loop:
            listener.wait_for("WATCHDOG=1", times=3)
            loop._within_s = -1  # from now on it is late
            listener.wait_for("STATUS=stuck; NO publisher has not moved")
            heard = listener.lines.count("WATCHDOG=1")
            before = len(looks)
            wait_until("looks", lambda: len(looks) > before + 3, timeout_s=60)
            assert not listener.read(0), "it is told of once, and the watchdog hears nothing"
            loop._within_s = 600
            listener.wait_for("WATCHDOG=1", times=heard + 1)
            stop.set()
            listener.wait_for("STOPPING")
            count = listener.lines.count("WATCHDOG=1")
            listener.wait_for("WATCHDOG=1", times=count + 1)  # a drain takes its time


@pytest.mark.parametrize("variables", [{"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}])
def test_a_watchdog_of_another_process_is_not_ours(variables: dict[str, str]) -> None:
    assert systemd.Manager({"NOTIFY_SOCKET": "@none", **variables}).watchdog_s == 0


@pytest.mark.parametrize("kind", ["absent", "nobody", "vsock", "relative", "long", "null", "full"])
def test_a_socket_that_can_not_be_used_is_one_warning(kind: str, tmp_path: Path, stop: threading.Event) -> None:
    names = {
        "absent": str(tmp_path / "absent"),
        "nobody": f"@nobody-{uuid.uuid4().hex}",
        "vsock": "vsock:2:1234",
        "relative": "notify",
        "long": "/" + "n" * 300,
        "null": "/no\0thing",
        "full": str(tmp_path / "full"),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent, captured() as logged:
        if kind == "full":
            silent.bind(names[kind])
            fill(names[kind])
        with systemd.told(stop, Health(stop).livez, {"NOTIFY_SOCKET": names[kind]}) as manager:
            manager.ready()
            manager.ready()
    (line,) = logged
    assert (line.event, line.words["socket"]) == ("notify_failed", names[kind])
    assert line.words["reason"]


def fill(name: str) -> None:
    """Send to a socket until there is no more room: whoever is to read it does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            while True:
                sender.sendto(b"x", name)
        except BlockingIOError:
            return


def test_a_manager_that_has_made_its_socket_anew_hears_the_next_message(tmp_path: Path) -> None:
    manager = systemd.Manager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    with listening(tmp_path / "notify"):
        manager.ready()
    (tmp_path / "notify").unlink()
    with listening(tmp_path / "notify") as again:
        manager.stops()
        again.wait_for("STOPPING=1")


def test_without_the_variable_nothing_is_imported(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from brewctl.probes.health import Health
from brewctl.roles import observing
stop = threading.Event()
before = threading.active_count(), len(os.listdir("/proc/self/fd"))
with observing.observed(None, stop, node="n", role="order") as health:
    health.up()
    print((threading.active_count(), len(os.listdir("/proc/self/fd"))) == before)
print("brewctl.probes.systemd" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")
