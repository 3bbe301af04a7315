"""What `top` can do to a sandbox: load it, start nodes, and end, pause or bring back whatever was started there."""

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from brewctl.config import Settings
from brewctl.errors import BrewError
from brewctl.lab import background
from brewctl.lab.load import Call, Load
from brewctl.lab.stage import Servers
from brewctl.lab.top.snapshot import Process

RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_CALLERS = 16
_TIMEOUT_S = 5.0  # of a call, and so of the end of a load
_SERVERS = {"kafka", "postgres"}


class LoadControl:
    """A load that is started, stopped and paced while it runs. Not for two threads."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._load: Load | None = None
        self._stop = threading.Event()
        self._addresses: Sequence[str] = ()
        self.rate = 20
        self.runs = False
        self.failed = 0  # calls, since the start

    @property
    def waits(self) -> bool:
        """Say whether orders would be sent, if there were an order-service."""
        return self.runs and not self._addresses

    def start(self, addresses: Sequence[str]) -> None:
        """Send orders to these order-services, in turn."""
        self.runs, self.failed = True, 0
        self._send_to(addresses)

    def follow(self, addresses: Sequence[str]) -> None:
        """Send to the order-services that there are now: who listens where one has ended may be anybody's."""
        if self.runs and set(addresses) != set(self._addresses):
            self._stop.set()
            self._send_to(addresses)

    def stop(self) -> None:
        """Send no more, and leave the last calls to themselves."""
        self._stop.set()
        self.runs = False

    def step(self, direction: int) -> None:
        """Choose the next higher rate, or the next lower one."""
        index = RATES.index(self.rate) + direction
        self.rate = RATES[min(max(index, 0), len(RATES) - 1)]
        if self.runs and self._load:
            self._load.set_rate(self.rate)

    def _send_to(self, addresses: Sequence[str]) -> None:
        self._addresses, self._stop = addresses, threading.Event()
        if addresses:
            self._load = Load(addresses, self._record, rate=self.rate, concurrency=_CALLERS, timeout_s=_TIMEOUT_S)
            threading.Thread(target=self._run, args=(self._load, self._stop), name="top-load").start()

    def _record(self, call: Call) -> None:
        if call.error:
            self.failed += 1
            if self.failed == 1:
                self._say(f"load: {call.error.message}")

    def _run(self, load: Load, stop: threading.Event) -> None:
        try:
            load.run(stop)
        except BrewError as error:
            self._say(f"load stopped: {error.message}")
            if stop is self._stop:
                self.runs = False


class Controls:
    """What may be done to the processes of a sandbox. Raises BrewError where it can't be done."""

    def __init__(self, home: Path, settings: Settings) -> None:
        self._home = home
        self._settings = settings
        self._servers = Servers(home)

    def start(self, role: str) -> str:
        """Start another node of a role: order, inventory or notifications. Returns its name."""
        (node,) = background.start(self._home, self._settings, [role])
        return node.name

    def send(self, process: Process, number: signal.Signals) -> None:
        """Send a signal to a node or to a server."""
        if process.role in _SERVERS:
            self._servers.send(process.name, number)
        else:
            background.send(self._home, process.name, number)

    def restart(self, process: Process) -> None:
        """End a process, as it is meant to be ended, and start it again; one that has ended is just started."""
        if process.role in _SERVERS:
            self._servers.end(process.name, signal.SIGINT if process.role == "postgres" else signal.SIGTERM)
            self._servers.restore()
        else:
            background.stop(self._home, [process.name])
            background.start(self._home, self._settings, [process.role], name=process.name)
