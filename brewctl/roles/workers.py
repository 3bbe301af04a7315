"""order-service as several processes on one port, for machines with more cores.

    brewctl serve order --workers 2      holds the port, and listens on nothing
      └── one pipe: everybody's stdin ──► order-1.1, order-1.2: each a whole order-service
                                             ▲ the kernel spreads connections over those that listen

Nobody writes to the pipe. Its end is the word to drain: said on a stop, and by the kernel where this process is killed.
A worker is started as a program, never forked: gRPC and the Kafka client don't survive that. This module imports
neither, which keeps the process that only watches at half the size of one that works.
"""

import contextlib
import errno
import functools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from brewctl import lifecycle, log, stdout
from brewctl.config import LogFormat, Settings, environment
from brewctl.errors import BrewError, PortError

logger = log.get(__name__)

_SLICE_S = 0.2
# A worker that is late says so itself, after drain_s.
_LATE_S = 2.0


class Workers:
    """A number of processes, of which a dead one is replaced once it has listened. None is ever left behind."""

    def __init__(
        self,
        settings: Settings,
        *,
        node: str,
        count: int,
        host: str,
        port: int,
        log_format: LogFormat,
        verbose: bool,
        publishes: bool = True,
    ) -> None:
        self._settings = settings
        self._node = node
        self._names = [f"{node}.{number}" for number in range(1, count + 1)]
        self._host = host
        self._port = port
        self._log_format = log_format
        self._verbose = verbose
        self._publishes = publishes
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()
        # The names of those that have listened, once at least.
        self.listening: set[str] = set()
        self._first_listens = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; port 0 takes a free one.

        Raises PortError for a taken port, SystemExit with the code of a worker that could not start or drain, and has
        said why, BrewError where it was killed meanwhile, DrainTimeoutError where it had to be killed.
        """
        with _held(self._host, self._port) as port:
            stdin, word = os.pipe()

            def drain() -> None:
                stop.wait()
                os.close(word)

            keepers = {name: functools.partial(self._keep, name, port, stdin, stop) for name in self._names}
            try:
                lifecycle.run_together(
                    {"drain": drain, **keepers},
                    stop,
                    drain_timeout_s=self._settings.limits.drain_s + _LATE_S,
                )
            finally:
                self.kill()
        log.say(self._node, "order-service stopped.")

    def kill(self) -> None:
        """End by SIGKILL whatever still runs."""
        for process in list(self._processes.values()):
            process.kill()

    def _keep(self, name: str, port: int, stdin: int, stop: threading.Event) -> None:
        """Start a worker, again and again, until a stop."""
        backoff = lifecycle.Backoff(stop)
        # The first goes ahead: what keeps all of them from starting is said once.
        while name != self._names[0] and not self._first_listens.wait(_SLICE_S) and not stop.is_set():
            pass
        while not stop.is_set():
            code = self._play(name, port, stdin)
            if stop.is_set() or name not in self.listening:
                if code < 0:
                    raise BrewError(f"{name} was ended by signal {-code}")
                if code:
                    sys.exit(code)
                return
            logger.warning("worker_died", worker=name, code=code)
            backoff.pause()

    def _play(self, name: str, port: int, stdin: int) -> int:
        """Run a worker to its end, pass its lines on, and return its exit code."""
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [
                # -P: whatever lies in this folder is no module of ours.
                *(sys.executable, "-P", "-m", "brewctl", *(["--verbose"] if self._verbose else [])),
                *("serve", "order", "--worker", "--node", name, "--host", self._host, "--port", str(port)),
                *("--log-format", self._log_format),
                *([] if self._publishes else ["--no-publisher"]),
            ],
            env={**os.environ, **environment(self._settings), **stdout.ENVIRONMENT},
            stdin=stdin,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a Ctrl-C is ours to hand on
        )
        self._processes[name] = process
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                said = line.rstrip("\n").removeprefix(f"[{name}] ")
                log.say(name, said)
                if said.startswith("order-service listening on "):
                    self._note_listening(name, said)
        return process.wait()

    def _note_listening(self, name: str, said: str) -> None:
        with self._lock:
            were = len(self.listening)
            self.listening.add(name)
            if were < len(self.listening) == len(self._names):
                log.say(self._node, said)
        self._first_listens.set()


@contextlib.contextmanager
def _held(host: str, port: int) -> Iterator[int]:
    """Keep a port for sockets of this user that share it: it is nobody else's, also while no worker listens.

    Port 0 takes a free one. Raises PortError where another server has it, or no address of the host is ours.
    """
    with contextlib.ExitStack() as held:
        bound = 0
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            # The same address may be found twice.
            for family, (address, _, *scope) in dict.fromkeys((family, place) for family, _, _, _, place in found):
                with _absence_allowed():
                    holder = _hold(family, (address, bound or port, *scope))
                    bound = held.enter_context(holder).getsockname()[1]
        except OSError:
            bound = 0
        if not bound:
            raise PortError(host, port)
        yield bound


@contextlib.contextmanager
def _absence_allowed() -> Iterator[None]:
    """Bear with an address that this machine has not, as gRPC does: `localhost` is also ::1, IPv6 or not."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise


def _hold(family: socket.AddressFamily, place: tuple[Any, ...]) -> socket.socket:
    # Only who shares with nobody is told that there is another server: be one for a moment.
    with socket.create_server(place, family=family) as alone:
        place = alone.getsockname()
    holder = socket.socket(family)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # The last server's connections may still be fading away. Nobody comes in beside us by that door.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(place)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        holder.close()
        raise
    return holder
