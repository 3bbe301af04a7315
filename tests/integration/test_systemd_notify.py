"""Real roles below a systemd that listens: when they are ready, what they wait for, that they live, that they drain."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from brewctl.lab.play.nodes import ROLES
from tests.conftest import Rig, begin, run
from tests.integration.http_tools import HTTP
from tests.integration.test_workers import workers_of
from tests.notified import Listener, listening

DRAINS = "STATUS=drains: what is in hand is finished"
COMMANDS = {
    "order": ("serve", "order", "--port", "0"),
    "publisher": ("publish",),
    "consumer": ("consume", "inventory"),
    "metrics": ("metrics", "--http", "127.0.0.1:0"),
}


@contextmanager
def managed(rig: Rig, folder: Path, *command: str, **env: str) -> Iterator[tuple[Listener, "subprocess.Popen[str]"]]:
    """Start a role as systemd does, with a watchdog that is told twice a second."""
    with listening(folder / "notify") as listener:
        told = {"NOTIFY_SOCKET": listener.name, "WATCHDOG_USEC": "1000000"}
        with begin(*command, env=rig.env | told | env, stderr=subprocess.STDOUT) as process:
            try:
                yield listener, process
            finally:
                process.kill()


def end(process: "subprocess.Popen[str]") -> str:
    """Stop it, and return what it has said."""
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("role", COMMANDS)
def test_a_role_says_that_it_is_ready_lives_and_drains(rig: Rig, tmp_path: Path, role: str) -> None:
    with managed(rig, tmp_path, *COMMANDS[role]) as (listener, process):
        listener.wait_for("READY=1")
        listener.wait_for("WATCHDOG=1", times=2)
        said = end(process)
        listener.read_all()
    assert "notify_failed" not in said
    if role in ROLES:
        assert ROLES[role].ready.search(said)
    assert listener.lines.count("READY=1") == 1
    assert listener.lines.count("STOPPING=1") == 1
    assert DRAINS in listener.lines
    assert {pid for pid, _ in listener.came} == {process.pid}


def test_one_that_waits_for_its_tables_says_so_and_is_ready_once_they_are_there(rig: Rig, tmp_path: Path) -> None:
    with (
        rig.own_database() as url,
        managed(rig, tmp_path, "publish", "--wait", "forever", BREW_DATABASE_URL=url) as (listener, process),
    ):
        listener.wait_for("STATUS=waits: ")
        listener.wait_for("WATCHDOG=1", times=2)
        assert "READY=1" not in listener.lines
        assert run("db", "init", env=rig.env | {"BREW_DATABASE_URL": url}).returncode == 0
        listener.wait_for("READY=1")
        end(process)


@pytest.mark.parametrize("http", [(), HTTP], ids=["alone", "http"])
def test_of_several_workers_the_supervisor_alone_tells_once_all_of_them_listen(
    rig: Rig, tmp_path: Path, http: tuple[str, ...]
) -> None:
    with managed(rig, tmp_path, *COMMANDS["order"], "--workers", "2", *http) as (listener, process):
        listener.wait_for("READY=1")
        for worker in workers_of(process.pid):
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & worker.environ().keys()
        listener.wait_for("WATCHDOG=1", times=2)
        end(process)
        listener.read_all()
    assert {pid for pid, _ in listener.came} == {process.pid}
    assert listener.lines.count("READY=1") == 1
    assert listener.lines.count("STOPPING=1") == 1


def test_a_worker_that_hangs_is_not_said_to_live(rig: Rig, tmp_path: Path) -> None:
    with managed(rig, tmp_path, *COMMANDS["order"], "--workers", "2", *HTTP) as (listener, process):
        listener.wait_for("READY=1")
        worker = workers_of(process.pid)[0]
        worker.suspend()
        listener.wait_for("STATUS=stuck; NO order-")
        worker.resume()
        before = listener.lines.count("WATCHDOG=1")
        listener.wait_for("WATCHDOG=1", times=before + 1)
        end(process)


def test_a_role_whose_socket_can_not_be_used_works_all_the_same(rig: Rig, tmp_path: Path) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}
    with begin("publish", env=rig.env | env, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        lines = []
        # Either may come first: the watchdog's thread does not wait for the role.
        for line in process.stdout:
            lines.append(line)
            if all(any(text in each for each in lines) for text in ("publisher started", "notify_failed")):
                break
        said = end(process)
    assert "".join([*lines, said]).count("notify_failed") == 1, "once is enough"
