"""Stop, kill and restart the sandbox's servers."""

import signal
from pathlib import Path

import psutil

from brewctl.errors import BrewError
from brewctl.sandbox import cluster, processes, state

_END_S = 20.0


class _Silent:
    def step(self, text: str) -> None:
        pass

    def advance(self, done: int, total: int, what: str) -> None:
        pass


class Servers:
    """The sandbox's servers. All methods raise BrewError if there is no sandbox."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def state(self) -> state.State:
        """Read the sandbox's state file."""
        known = state.load(self.home)
        if known is None:
            raise BrewError(f"no sandbox in {self.home}", hint="run `brewctl up`")
        return known

    @property
    def brokers(self) -> list[str]:
        """The names of the brokers."""
        return [f"kafka-{number}" for number, _ in enumerate(self.state().kafka_ports, start=1)]

    def send(self, name: str, number: signal.Signals) -> psutil.Process | None:
        """Send a signal to a server. Returns its process; None if it does not run."""
        server = self.state().servers.get(name)
        process = processes.find(server) if server else None
        if process:
            process.send_signal(number)
        return process

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server with a signal, if it runs, and wait until it has ended, for 20 s at most."""
        if process := self.send(name, number):
            psutil.wait_procs([process], timeout=_END_S)

    def runs(self, name: str) -> bool:
        """Say whether a server's process runs."""
        server = self.state().servers.get(name)
        return server is not None and processes.find(server) is not None

    def restore(self) -> None:
        """Start the servers that do not run, and wait until all answer."""
        cluster.up(self.home, cluster.Options(), _Silent())
