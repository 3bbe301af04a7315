"""Child processes: real ones are spawned, found, mistaken for others, and ended."""

import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from brewctl.sandbox import processes
from brewctl.sandbox.server import Server

Spawn = Callable[..., Server]
TERM = ((signal.SIGTERM, 10.0),)
KILL = ((signal.SIGKILL, 10.0),)
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asked\\n"))
os.write(1, b"ready\\n")
while True:
    time.sleep(60)
"""


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Spawn a command in the test's folder; whatever still runs at the end is killed."""
    spawned: list[Server] = []

    def start(*command: str, **more: Path) -> Server:
        place = {"log": tmp_path / "server.log", "cwd": tmp_path, **more}
        server = processes.spawn("server", command, port=1, **place)  # type: ignore[arg-type]
        spawned.append(server)
        return server

    yield start
    processes.end(spawned, KILL)


def start_deaf(spawn: Spawn) -> Server:
    """A process that hears SIGTERM and goes on."""
    server = spawn(sys.executable, "-c", DEAF)
    wait_until("the handler", lambda: "ready" in Path(server.log).read_text(), timeout_s=30, every_s=0.01)
    return server


def test_spawned_found_ended(spawn: Spawn) -> None:
    server = spawn("sleep", "600")
    process = processes.find(server)
    assert process is not None
    assert process.pid == server.pid
    processes.end([server], TERM)
    assert processes.find(server) is None
    assert not psutil.pid_exists(server.pid)


def test_no_ctrl_c_of_ours_reaches_it(spawn: Spawn) -> None:
    server = spawn("sleep", "600")
    assert os.getsid(server.pid) == server.pid


def test_what_it_prints_is_in_its_log(spawn: Spawn, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    server = spawn("sh", "-c", "echo out; echo err >&2; pwd", log=log)
    wait_until("its end", lambda: processes.find(server) is None, timeout_s=30, every_s=0.01)
    assert log.read_text() == f"out\nerr\n{tmp_path}\n"


def test_a_console_of_its_own(spawn: Spawn, tmp_path: Path) -> None:
    server = spawn("sh", "-c", "echo out", log=tmp_path / "server.log", console=tmp_path / "console.log")
    wait_until("its end", lambda: processes.find(server) is None, timeout_s=30, every_s=0.01)
    assert server.log == str(tmp_path / "server.log")
    assert (tmp_path / "console.log").read_text() == "out\n"
    assert not (tmp_path / "server.log").exists()


def test_a_log_goes_on_until_it_is_large(spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, old = tmp_path / "server.log", tmp_path / "server.log.1"
    log.write_text("before\n")
    spawn("sleep", "600")
    assert log.read_text() == "before\n"
    monkeypatch.setattr(processes, "_LARGE_LOG_BYTES", 3)
    spawn("sleep", "600")
    assert log.read_text() == ""
    assert old.read_text() == "before\n"


@pytest.mark.parametrize("seconds", [-60.0, 60.0])
def test_a_pid_that_belongs_to_another_is_left_alone(spawn: Spawn, seconds: float) -> None:
    server = spawn("sleep", "600")
    # Where the system tells no more than the clock's time.
    mistaken = dataclasses.replace(server, started=server.started + seconds, birth="")
    assert processes.find(mistaken) is None
    processes.end([mistaken], KILL)
    assert processes.find(server) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells a start that no clock moves")
def test_a_clock_set_anew_hides_no_process_and_shows_no_other(spawn: Spawn) -> None:
    server, later = spawn("sleep", "600"), spawn("sleep", "600")
    stepped = dataclasses.replace(server, started=server.started - 3600)
    assert processes.find(stepped) is not None
    boot, _, ticks = server.birth.partition(" ")
    for other in (later.birth, f"{boot} {int(ticks) - 1}", f"{boot[::-1]} {ticks}"):
        if other != server.birth:
            assert processes.find(dataclasses.replace(server, birth=other)) is None


def test_who_works_in_a_folder_is_found(spawn: Spawn, tmp_path: Path) -> None:
    inside, beside = tmp_path / "data" / "deep", tmp_path / "database"
    inside.mkdir(parents=True)
    beside.mkdir()
    worker = spawn("sleep", "600", cwd=inside)
    spawn("sleep", "600", cwd=beside)
    assert [process.pid for process in processes.working_in(tmp_path / "data")] == [worker.pid]
    assert processes.working_in(tmp_path / "absent") == []


def test_a_process_that_is_gone_is_not_found(spawn: Spawn) -> None:
    server = spawn("true")
    wait_until("its end", lambda: processes.find(server) is None, timeout_s=30, every_s=0.01)
    processes.end([server], TERM)


def test_who_hears_no_sigterm_is_killed(spawn: Spawn) -> None:
    server = start_deaf(spawn)
    processes.end([server], ((signal.SIGTERM, 0.1), *KILL))
    assert processes.find(server) is None
    assert Path(server.log).read_text() == "ready\nasked\n"


def test_who_hears_is_not_killed(spawn: Spawn, tmp_path: Path) -> None:
    polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    server = spawn("sh", "-c", polite)
    wait_until("the trap", lambda: "ready" in Path(server.log).read_text(), timeout_s=30, every_s=0.01)
    processes.end([server], ((signal.SIGTERM, 30.0), *KILL))
    assert (tmp_path / "server.log").read_text() == "ready\nbye\n"


def test_all_are_ended_together(spawn: Spawn) -> None:
    servers = [spawn("sleep", "600"), start_deaf(spawn), spawn("true")]
    processes.end(servers, ((signal.SIGTERM, 0.1), *KILL))
    assert [processes.find(server) for server in servers] == [None, None, None]


def test_one_that_its_parent_does_not_look_after_has_ended(spawn: Spawn, tmp_path: Path) -> None:
    """As below PID 1 of many containers: its pid stays taken."""
    program = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    log = tmp_path / "parent.log"
    spawn(sys.executable, "-c", program, log=log)
    wait_until("its child", lambda: log.read_text().endswith("\n"), timeout_s=30, every_s=0.01)
    child = psutil.Process(int(log.read_text()))
    processes.end([Server("child", child.pid, child.create_time(), 1, "")], KILL)
    assert child.status() == psutil.STATUS_ZOMBIE


def test_one_that_does_not_end_is_named(spawn: Spawn) -> None:
    server = start_deaf(spawn)
    with pytest.raises(BrewError, match=f"process {server.pid} does not end"):
        processes.end([server], ((signal.SIGTERM, 0.05),))


def test_nothing_to_end() -> None:
    processes.end([], TERM)


def test_a_free_port_can_be_listened_on() -> None:
    port = processes.free_port()
    processes.require_free("postgres", port)
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_busy_port_is_named(host: str) -> None:
    with socket.create_server((host, 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(BrewError, match=f"^port {port} for kafka-1 can't be used .*in use.*brewctl down --purge"):
            processes.require_free("kafka-1", port)


def test_a_port_is_free_again_while_its_connections_wait() -> None:
    """A server that was just stopped leaves connections in TIME_WAIT: no reason to refuse its restart."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listening.accept()
            accepted.close()
    processes.require_free("postgres", port)


def test_ready_once_it_answers(spawn: Spawn) -> None:
    answers = iter([False, False, True])
    processes.wait_ready([spawn("sleep", "600")], lambda: next(answers), timeout_s=60)
    assert next(answers, None) is None


def test_a_server_that_ends_at_its_start_shows_why(spawn: Spawn) -> None:
    server = spawn("sh", "-c", "echo first; echo no room >&2; exit 1")
    with pytest.raises(BrewError) as refused:
        processes.wait_ready([server], lambda: False, timeout_s=60)
    assert str(refused.value) == f"server ended at its start\n  first\n  no room\nthe whole log is {server.log}"


def test_a_server_that_does_not_answer_in_time(spawn: Spawn) -> None:
    with pytest.raises(BrewError, match=r"^server does not answer on port 1 after 0 s\n  \(nothing in its log\)"):
        processes.wait_ready([spawn("sleep", "600")], lambda: False, timeout_s=0)


@pytest.mark.parametrize(
    ("said", "hint"),
    [("java.io.IOException: Too many open files", "ulimit -n"), ("No space left on device", "BREW_HOME")],
)
def test_what_a_shell_or_a_disk_bounds_is_named(spawn: Spawn, said: str, hint: str) -> None:
    server = spawn("sh", "-c", f"echo {said}; exit 1")
    with pytest.raises(BrewError, match=said) as refused:
        processes.wait_ready([server], lambda: False, timeout_s=60)
    assert hint in refused.value.hint


def test_a_server_that_does_not_answer_in_time_says_what_the_last_try_was_told(spawn: Spawn) -> None:
    with pytest.raises(BrewError, match=r"^server does not answer on port 1 after 0 s \(it speaks no TLS\)\n"):
        processes.wait_ready([spawn("sleep", "600")], lambda: False, timeout_s=0, why=lambda: "it speaks no TLS")


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"caf\xff\n")
    server = Server("server", 1, 0.0, 1, str(log))
    assert processes.tail(server, lines=3) == "  line 98\n  line 99\n  caf\ufffd"


def test_memory_of_a_process_and_its_children(spawn: Spawn) -> None:
    parent = psutil.Process()
    alone = processes.memory(parent)
    assert alone > 0
    server = spawn("sleep", "600")
    assert processes.memory(psutil.Process(server.pid)) > 0
