"""Processes that outlive the command that started them. They are ended by the pid that we started, never by name."""

import errno
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from brewctl.errors import BrewError
from brewctl.sandbox.server import Server

# How far two readings of a process's start may differ if only the clock tells it, which may be adjusted.
_SAME_START_S = 1.0
_LARGE_LOG_BYTES = 10 * 1024 * 1024
_RECENT_BYTES = 64 * 1024
_PORTS = (15_000, 32_000)
_PORT_TRIES = 200
_LOOK_EVERY_S = 0.05
_PORT_TAKEN = os.strerror(errno.EADDRINUSE)  # Java and PostgreSQL log it in the system's words
# What servers log at a limit of the shell or the disk, and what mends it.
_MENDS = {
    "Too many open files": "raise `ulimit -n`",
    "Could not reserve": "raise `ulimit -v`, or let other programs have less memory",
    "Could not allocate": "raise `ulimit -v`, or let other programs have less memory",
    "No space left on device": "make room, or set BREW_HOME to a folder on another disk",
}


class PortTakenError(BrewError):
    """Another program listens on the port of a server that was to be started."""


def spawn(
    name: str,
    command: Sequence[str | Path],
    *,
    port: int,
    log: Path,
    cwd: Path,
    console: Path | None = None,
    env: Mapping[str, str] | None = None,
    role: str = "",
) -> Server:
    """Start a process in a session of its own: a Ctrl-C in this terminal does not reach it.

    What it prints is appended to `console`, for one that writes its `log` itself, else to `log`.
    """
    output = console or log
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists() and output.stat().st_size > _LARGE_LOG_BYTES:
        output.replace(output.with_name(f"{output.name}.1"))
    with output.open("ab") as file:
        log_start = file.tell()
        child = subprocess.Popen(  # noqa: S603 - commands of our own making
            [str(part) for part in command],
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # it is meant to outlive this Popen: no warning when that is collected
    started = psutil.Process(child.pid).create_time()
    return Server(name, child.pid, started, port, str(log), _birth(child.pid), role, log_start)


def find(server: Server) -> psutil.Process | None:
    """Return the running process; None if it has ended, also if another process has its pid now."""
    try:
        process = psutil.Process(server.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            process.wait(0)
            return None
        if server.birth:
            return process if _birth(server.pid) == server.birth else None
        return process if abs(process.create_time() - server.started) < _SAME_START_S else None
    except psutil.Error:
        return None


def is_paused(process: psutil.Process) -> bool:
    """Say whether a process is stopped by a signal and can be continued. An ended process is not."""
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False


def working_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is the folder or below it, also those of other commands."""
    place, found = folder.resolve(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(place):
                found.append(process)
    return found


def _birth(pid: int) -> str:
    """Return what tells a process from earlier ones with its pid: this boot's id, and its start in ticks since then.

    Linux only (proc_pid_stat(5), field 22), else ""; a start time moves when the clock is set, as after a suspend.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]
    except OSError:
        return ""
    return f"{boot} {int(ticks)}"


def end(servers: Iterable[Server], steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each step's signal to the servers that still run, and wait for them at most that step's seconds."""
    running = [server for server in servers if find(server)]
    for number, wait_s in steps:
        for server in running:
            if process := find(server):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        deadline = time.monotonic() + wait_s
        # psutil waits until a parent has reaped the process, which PID 1 of many containers never does.
        while (running := [server for server in running if find(server)]) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        if not running:
            return
    pids = ", ".join(str(server.pid) for server in running)
    raise BrewError(f"process {pids} does not end", hint="look at it with `ps`")


def free_port() -> int:
    """Return a port that no program uses now, below those that systems give to outgoing connections.

    A port of that range could be given to a connection of any program while its server is down.
    """
    for _ in range(_PORT_TRIES):
        port = random.randrange(*_PORTS)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BrewError("no free port found", hint="choose one with --postgres-port and --kafka-port")


def require_free(name: str, port: int) -> None:
    """Raise PortTakenError where another program listens on the port."""
    try:
        _bind(port)
    except OSError as error:
        message = f"port {port} for {name} can't be used ({os.strerror(error.errno or 0).lower()})"
        raise PortTakenError(message, hint="end what listens there, or `brewctl down --purge` for new ports") from error


def is_free(port: int) -> bool:
    """Say whether no program listens on the port."""
    with suppress(OSError):
        _bind(port)
        return True
    return False


def _bind(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def wait_ready(
    servers: Sequence[Server], answers: Callable[[], bool], *, timeout_s: float, why: Callable[[], str] = lambda: ""
) -> None:
    """Wait until the servers answer their clients' question.

    Raises BrewError with what the last try was told, which `why` returns, and the end of a log; PortTakenError for a
    server that ended because its port is taken.
    """
    deadline = time.monotonic() + timeout_s
    while not answers():
        late = time.monotonic() > deadline
        for server in servers:
            ended = find(server) is None
            if ended or late:
                what = "ended at its start" if ended else f"does not answer on port {server.port} after {timeout_s:g} s"
                reason = f" ({told})" if not ended and (told := why()) else ""
                end = tail(server)
                hint = next((mend for cause, mend in _MENDS.items() if cause in end), "")
                failure = PortTakenError if ended and _PORT_TAKEN in end else BrewError
                raise failure(f"{server.name} {what}{reason}\n{end}\nthe whole log is {server.log}", hint=hint)
        time.sleep(_LOOK_EVERY_S)


def tail(server: Server, lines: int = 20) -> str:
    """Return the last lines of a server's log, and of what it printed, indented."""
    log = Path(server.log)
    return indented([*recent(log)[-lines:], *recent(log.with_name("console.log"))[-lines:]][-lines:])


def recent(log: Path, *, start: int = 0) -> list[str]:
    """Return the last lines of a log after byte `start`, from 64 KiB at most; none if it can't be read."""
    with suppress(OSError), log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - _RECENT_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()
    return []


def indented(lines: Iterable[str]) -> str:
    """Return lines of a log as an error shows them."""
    return "\n".join(f"  {line}" for line in lines) or "  (nothing in its log)"


def memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its children; shared pages are counted once if the system tells them."""
    total, members = 0, [process]
    with suppress(psutil.Error):
        members += process.children(recursive=True)
    for member in members:
        try:
            info = member.memory_full_info() if member.is_running() else None
        except psutil.Error:
            continue
        total += getattr(info, "pss", 0) or getattr(info, "rss", 0)
    return total
