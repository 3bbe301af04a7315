"""`brewctl` without its start, for the unit tests: a server that has imported the command line and forks for each run.

A run is still a process of its own, with its own descriptors, directory, environment, signals and exit code. Only the
imports, of which nearly all of a start consists, have been done before. Nothing of gRPC or of a Kafka client has been
called before the fork, only imported.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import typer

from brewctl.cli import main

BREWCTL = Path(sys.executable).with_name("brewctl")
# Variables that are read when a command runs and not at an import: another value of any other needs a start of its own.
_READ_LATE = ("BREW_", "COLUMNS", "HOME", "LINES", "NO_COLOR", "PATH", "PG", "PYTEST_", "TERM", "TMPDIR", "XDG_")


class Warm:
    """The server, seen from the tests. Its runs end with it."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},  # as brewctl sets it, before gRPC reads it at its import
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait(timeout=60)

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a run with this environment needs no start of its own."""
        changed = {name for name, _value in environment.items() ^ self._environment.items()}
        return all(name.startswith(_READ_LATE) for name in changed)

    def run(
        self, arguments: tuple[str, ...], environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Do as `subprocess.run` with `capture_output` and `text` does; raises its TimeoutExpired."""
        command = [str(BREWCTL), *arguments]
        said = json.dumps([command, environment, str(Path.cwd())]).encode()
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "rb") as nothing, _pipe() as (out, out_end), _pipe() as (err, err_end):
            ends = (theirs, nothing, out_end, err_end)
            socket.send_fds(self._socket, [b"."], [end.fileno() for end in ends])
            for end in ends:
                end.close()
            ours.sendall(said)
            ours.shutdown(socket.SHUT_WR)
            answer = ours.makefile("r")
            pid = int(answer.readline())
            try:
                output, errors = _read((out, err), timeout)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout) from None
            return subprocess.CompletedProcess(command, int(answer.readline()), output, errors)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    reader, writer = os.pipe()
    with open(reader, "rb") as out, open(writer, "wb") as end:
        yield out, end


def _read(streams: tuple[BinaryIO, ...], timeout: float) -> list[str]:
    """Read all of them to their ends; raises TimeoutError."""
    deadline = time.monotonic() + timeout
    read: dict[int, list[bytes]] = {stream.fileno(): [] for stream in streams}
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            if not ready and time.monotonic() >= deadline:
                raise TimeoutError
            for key, _events in ready:
                if part := os.read(key.fd, 65536):
                    read[key.fd].append(part)
                else:
                    selector.unregister(key.fileobj)
    return [io.TextIOWrapper(io.BytesIO(b"".join(parts))).read() for parts in read.values()]


def _serve(requests: socket.socket) -> None:
    """Fork for each request, until the tests hang up."""
    replies: dict[int, socket.socket] = {}

    def reap(*_: object) -> None:
        while replies and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with contextlib.suppress(OSError), replies.pop(ended[0]) as reply:
                reply.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))

    signal.signal(signal.SIGCHLD, reap)
    while True:
        _byte, descriptors, _flags, _address = socket.recv_fds(requests, 1, 4)
        if not descriptors:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            _become(*descriptors)
        reply, *rest = descriptors
        replies[pid] = socket.socket(fileno=reply)
        for descriptor in rest:
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _import() -> None:
    """Import what commands import when they run. Not brewctl.roles.notifications: it reads the environment then."""
    import typer.rich_utils  # noqa: F401, PLC0415

    import brewctl.certificates  # noqa: PLC0415
    import brewctl.client  # noqa: PLC0415
    import brewctl.doctor  # noqa: PLC0415
    import brewctl.exporter  # noqa: PLC0415
    import brewctl.lab.load.load  # noqa: PLC0415
    import brewctl.lab.look  # noqa: PLC0415
    import brewctl.lab.play.background  # noqa: PLC0415
    import brewctl.probes.endpoint  # noqa: PLC0415
    import brewctl.roles.consumer  # noqa: PLC0415
    import brewctl.roles.order  # noqa: F401, PLC0415


def _become(reply: int, *standard: int) -> NoReturn:
    """Take what the test said as one's own, and run the command as the installed script does."""
    with open(reply, "r+b", buffering=0) as test:
        test.write(b"%d\n" % os.getpid())
        sys.argv, environment, directory = json.loads(test.readall() or b"")
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        setattr(sys, name, open(number, mode, errors="backslashreplace" if name == "stderr" else None))  # noqa: SIM115
        setattr(sys, f"__{name}__", getattr(sys, name))
    code: object = 1
    try:
        main.main()
    except SystemExit as ended:
        code = ended.code
    # As the interpreter ends, but for taking a thousand modules apart, which costs more than the run.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    sys.path[0] = str(BREWCTL.parent)  # as of the installed script
    _import()
    # The tree of commands is made once, and tried, for what is imported by help and by a wrong flag.
    commands = main.root_command()
    main.root_command = lambda words=(): commands  # noqa: ARG005 - called by name
    for tried in (["--help"], ["status", "--no-such-flag"]):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(typer.TyperException):
            commands(tried, standalone_mode=False, prog_name="brewctl")
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        os.set_inheritable(listener.fileno(), False)
        _serve(listener)
