"""The actions of `top` on a sandbox: a load of orders; start, end, pause and restart nodes and servers."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from brewctl.config import Settings
from brewctl.errors import BrewError
from brewctl.lab.load.load import CallOutcome, Load, LoadCall
from brewctl.lab.play import background
from brewctl.lab.play.nodes import Role
from brewctl.lab.play.servers import Servers
from brewctl.lab.top.snapshot import Process
from brewctl.security import PLAINTEXT, OrderSecurity

RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_CALLERS = 16
_TIMEOUT_S = 5.0  # of a call, which the end of the load waits for
_SERVERS = {"kafka", "postgres"}


class LoadControl:
    """A load of orders with a start, a stop and a rate. Not thread-safe."""

    def __init__(self, say: Callable[[str], None], security: OrderSecurity = PLAINTEXT) -> None:
        self._say = say
        self._security = security
        self._load: Load | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._addresses: Sequence[str] = ()
        self._counting = threading.Lock()
        self._told = Counter[CallOutcome]()  # outcomes of the calls since the start
        self.rate = 20
        self.wanted = False  # between start and stop, also while it waits for an order-service

    @property
    def failed(self) -> int:
        """The number of calls since the start that were refused, or not answered in time."""
        return self._told[CallOutcome.FAILED] + self._told[CallOutcome.UNKNOWN]

    @property
    def answering(self) -> bool:
        """Whether answers may still come."""
        return any(thread.is_alive() for thread in self._threads)

    def __str__(self) -> str:
        """Return the load's state, for the title line."""
        waits = self.wanted and not self._addresses
        doing = "load waits" if waits else f"load {self.rate}/s" if self.wanted else "no load"
        return f"{doing}, {self.failed:,} failed" if self.failed else doing

    def start(self, addresses: Sequence[str]) -> None:
        """Start to send orders to these addresses, in turn."""
        self.wanted, self._told = True, Counter()
        self._send_to(addresses)

    def follow(self, addresses: Sequence[str]) -> None:
        """Send to the order-services that run now; wait if none does. An old port may be another process's now."""
        if not self.wanted or set(addresses) == set(self._addresses):
            return
        if addresses:
            self._send_to(addresses)
        else:
            self._stop.set()
            self._addresses = ()
            self._say("load: waits for an order-service: press o to add one")

    def stop(self) -> None:
        """Stop sending. Does not wait for the last answers."""
        self.wanted = False
        self._stop.set()

    def finish(self) -> str:
        """Stop, and wait for the last answers, for a call's timeout at most.

        Returns a line with the outcomes of all orders since the start; "" if there were none.
        """
        self.stop()
        for thread in self._threads:
            thread.join()
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in self._told.items())
        return f"load: orders {told}" if told else ""

    def step(self, direction: int) -> None:
        """Choose the next higher rate (1), or the next lower one (-1)."""
        index = RATES.index(self.rate) + direction
        self.rate = RATES[min(max(index, 0), len(RATES) - 1)]
        if self.wanted and self._load:
            self._load.set_rate(self.rate)

    def _send_to(self, addresses: Sequence[str]) -> None:
        self._stop.set()
        self._say(f"load: {self.rate} orders a second to {', '.join(addresses)}")
        self._addresses, self._stop = addresses, threading.Event()
        self._load = Load(
            addresses,
            self._record,
            rate=self.rate,
            concurrency=_CALLERS,
            timeout_s=_TIMEOUT_S,
            security=self._security,
        )
        thread = threading.Thread(target=self._load.run, args=(self._stop,), name="top-load")
        thread.start()
        self._threads = [thread, *(each for each in self._threads if each.is_alive())]

    def _record(self, call: LoadCall) -> None:
        with self._counting:
            first = call.error is not None and not self.failed
            self._told[call.outcome] += 1
        if first and call.error:
            self._say(f"load: {call.error.message}")


class Controls:
    """Acts on the processes of a sandbox. All methods raise BrewError."""

    def __init__(self, home: Path, settings: Settings) -> None:
        self._home = home
        self._settings = settings
        self._servers = Servers(home)

    def start(self, role: Role) -> None:
        """Start another node of a role."""
        self._start(role)

    def send(self, process: Process, number: signal.Signals) -> None:
        """Send a signal to a node or to a server."""
        if process.role in _SERVERS:
            if self._servers.send(process.name, number) is None:
                raise BrewError(f"{process.name} is gone", hint="press r to start it")
        else:
            background.send(self._home, process.name, number)

    def restart(self, process: Process) -> None:
        """End a process cleanly, if it runs, and start it again."""
        if process.role in _SERVERS:
            self._servers.end(process.name, signal.SIGINT if process.role == "postgres" else signal.SIGTERM)
            self._servers.restore()
        else:
            background.stop(self._home, [process.name])
            self._start(process.role, name=process.name)

    def _start(self, role: str | Role, *, name: str = "") -> None:
        (node,) = background.start(self._home, self._settings, [role], name=name)
        if node.port:  # another process may have taken the port: `settle` handles that
            background.settle(self._home, self._settings, node)
