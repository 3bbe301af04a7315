"""order-service as several processes on one port, for machines with more cores.

    brewctl serve order --workers 2      holds the port, and listens on nothing
      │   ▲ stdout: ready, listening
      ▼   │ stdin: go, and its end: drain
    order-1.1, order-1.2: each a whole order-service, on the same port

The kernel gives each new connection to one of the processes that listen at that moment, and there it stays. So the
workers open the port together: each says that it is ready when nothing else is left to do, and waits for a byte on its
stdin, which all of them get once the last one is ready. The end of stdin tells a worker to drain. It comes on a stop,
and from the kernel where this process is killed.

A worker is started as a program, never forked: gRPC and the Kafka client don't survive that. This module imports
neither, which keeps the process that only watches at half the size of one that works.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from brewctl import lifecycle, log, metrics, stdout, waiting
from brewctl.config import HTTP_VARIABLE, LogFormat, Settings, environment
from brewctl.errors import BrewError
from brewctl.roles import shared_port
from brewctl.roles.listening import Security
from brewctl.roles.observing import observed_crew

if TYPE_CHECKING:
    from brewctl.probes.endpoint import Address
    from brewctl.probes.health import Health

logger = log.get(__name__)

_PLAINTEXT = Security()

# The workers' lines that this process reads.
_READY = "order-service ready"
_LISTENING = "order-service listening on "
_SLICE_S = 0.2
# Beyond drain_s, after which a worker reports by itself that its drain is late.
_LATE_S = 2.0


def await_go(node: str, told: threading.Event, stop: threading.Event) -> bool:
    """Report that this worker is ready, and wait until `told` is set; False if a stop came first."""
    log.say(node, _READY)
    while not told.wait(_SLICE_S) and not stop.is_set():
        pass
    return not stop.is_set()


class _Inputs:
    """The stdin of each worker: a byte tells it to open the port, the end to drain."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[str, int] = {}
        self._going = self._over = False

    def open(self, name: str) -> int:
        """Return the end that a new worker reads, to be closed by the caller. What all were told is in it."""
        reading, writing = os.pipe()
        with self._lock:
            self._drop(name)
            self._ends[name] = writing
            if self._going:
                self._go(writing)
            if self._over:
                self._drop(name)
        return reading

    def go(self) -> None:
        """Tell every worker, also one that is started later, to open the port."""
        with self._lock:
            self._going = True
            for writing in self._ends.values():
                self._go(writing)

    def end(self) -> None:
        """Tell every worker, also one that is started later, to drain."""
        with self._lock:
            self._over = True
            for name in list(self._ends):
                self._drop(name)

    def _go(self, writing: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # the worker is dead; `_keep` handles that
            os.write(writing, b"\n")

    def _drop(self, name: str) -> None:
        if name in self._ends:
            os.close(self._ends.pop(name))


class Workers:
    """Runs a number of worker processes, and replaces one that dies after it has listened. Leaves none behind."""

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
        wait_s: float = 0,
        security: Security = _PLAINTEXT,
        http: "Address | None" = None,
    ) -> None:
        self._settings = settings
        self._node = node
        self._names = [f"{node}.{number}" for number in range(1, count + 1)]
        self._host = host
        self._port = port
        self._log_format = log_format
        self._verbose = verbose
        self._publishes = publishes
        self._wait_s = wait_s  # passed on: each worker waits for its servers itself
        self._security = security
        self._http = http
        self._numbers = ""  # the folder of the workers' metrics
        self._health: Health | None = None  # set up when all of them listen
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._inputs = _Inputs()
        self._lock = threading.Lock()
        # The names of workers that were ready to listen, and of workers that have listened, at least once.
        self._ready: set[str] = set()
        self.listening: set[str] = set()
        self._first_ready = threading.Event()
        self._late: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; port 0 takes a free one.

        Raises PortError for a taken port, SystemExit with the code of a worker that could not start or drain, and has
        said why, BrewError where it was killed meanwhile or did not get ready, DrainTimeoutError where it had to be
        killed.
        """
        with (
            self._observed(stop) as (numbers, self._health),
            shared_port.held(self._host, self._port) as port,
        ):
            self._numbers = str(numbers or "")
            keepers = {name: functools.partial(self._keep, name, port, stop) for name in self._names}
            try:
                lifecycle.run_together(
                    {"inputs": lambda: self._tell(stop), **keepers},
                    stop,
                    drain_timeout_s=self._settings.limits.drain_s + _LATE_S,
                )
            finally:
                self.kill()
        log.say(self._node, "order-service stopped.")

    def _observed(self, stop: threading.Event) -> contextlib.AbstractContextManager["tuple[Path | None, Health]"]:
        look_s = self._settings.limits.database_look_s
        return observed_crew(self._http, stop, node=self._node, role="order", names=self._names, within_s=look_s)

    def kill(self) -> None:
        """Kill the workers that still run, with SIGKILL."""
        for process in list(self._processes.values()):
            process.kill()

    def _tell(self, stop: threading.Event) -> None:
        """Tell the workers to open the port, all at once, and to drain."""
        try:
            if self._await_all_ready(stop):
                self._inputs.go()
            stop.wait()
        finally:
            self._inputs.end()

    def _await_all_ready(self, stop: threading.Event) -> bool:
        """Wait until every worker is ready; False if a stop came first. Raises BrewError if one takes too long."""
        # The time limit begins anew with each worker that gets ready: many of them take long on few cores.
        were, since = 0, time.monotonic()
        while not stop.wait(_SLICE_S / 10):
            with self._lock:
                missing = [name for name in self._names if name not in self._ready]
            limit_s = self._settings.limits.worker_ready_s + self._wait_s
            if not missing:
                return True
            if len(self._ready) > were:
                were, since = len(self._ready), time.monotonic()
            if time.monotonic() > since + limit_s:
                self._late = missing if were else missing[:1]  # the others wait for the first
                for process in [self._processes[name] for name in self._late if name in self._processes]:
                    process.kill()  # it has no call in hand yet
                raise BrewError(
                    f"{' and '.join(self._late)} did not get ready to listen within {limit_s:g} s",
                    hint="see what is slow with `brewctl doctor`, or start fewer workers",
                )
        return False

    def _keep(self, name: str, port: int, stop: threading.Event) -> None:
        """Start a worker, again and again, until a stop."""
        backoff = lifecycle.Backoff(stop)
        # The first worker starts alone, so that an error which concerns all of them is reported once.
        while name != self._names[0] and not self._first_ready.wait(_SLICE_S) and not stop.is_set():
            pass
        while not stop.is_set():
            code = self._play(name, port)
            if name in self._late or (code == -signal.SIGTERM and self._is_stopped_early(name, stop)):
                return
            if stop.is_set() or name not in self.listening:
                if code < 0:
                    raise BrewError(f"{name} was ended by signal {-code}")
                if code:
                    sys.exit(code)
                return
            logger.warning("worker_died", worker=name, code=code)
            backoff.pause()

    def _is_stopped_early(self, name: str, stop: threading.Event) -> bool:
        """Say whether SIGTERM to all processes has ended a worker before it could handle the signal."""
        return name not in self.listening and stop.wait(_SLICE_S)

    def _play(self, name: str, port: int) -> int:
        """Run a worker to its end, pass its lines on, and return its exit code."""
        stdin = self._inputs.open(name)
        try:
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [
                    # -P: no module is imported from the current folder.
                    *(sys.executable, "-P", "-m", "brewctl", *(["--verbose"] if self._verbose else [])),
                    *("serve", "order", "--worker", "--node", name, "--host", self._host, "--port", str(port)),
                    *("--log-format", self._log_format),
                    *([] if self._publishes else ["--no-publisher"]),
                    *("--wait", waiting.written(self._wait_s)),
                    *self._security.arguments(),
                ],
                env={
                    **os.environ,
                    **environment(self._settings),
                    **stdout.ENVIRONMENT,
                    HTTP_VARIABLE: "",
                    metrics.SHARED: self._numbers,
                },
                stdin=stdin,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # this process passes a Ctrl-C on
            )
        finally:
            os.close(stdin)
        self._processes[name] = process
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                said = line.rstrip("\n").removeprefix(f"[{name}] ")
                if said == _READY:
                    self._note_ready(name)
                    continue
                log.say(name, said)
                if said.startswith(_LISTENING):
                    self._note_listening(name, said)
        return process.wait()

    def _note_ready(self, name: str) -> None:
        with self._lock:
            self._ready.add(name)
        self._first_ready.set()

    def _note_listening(self, name: str, said: str) -> None:
        with self._lock:
            were = len(self.listening)
            self.listening.add(name)
            if were < len(self.listening) == len(self._names):
                log.say(self._node, said)
                if self._health:
                    self._health.up()
