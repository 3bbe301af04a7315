"""The sandbox's servers, to be stopped, killed and brought back."""

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
    """The sandbox's servers, to break and to bring back."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def state(self) -> state.State:
        """Read what the sandbox is made of. Raises BrewError where there is none."""
        known = state.load(self.home)
        if known is None:
            raise BrewError(f"no sandbox in {self.home}", hint="run `brewctl up`")
        return known

    @property
    def brokers(self) -> list[str]:
        """The names of the brokers."""
        return [f"kafka-{number}" for number, _ in enumerate(self.state().kafka_ports, start=1)]

    def send(self, name: str, number: signal.Signals) -> psutil.Process | None:
        """Send a server a signal; None where it doesn't run."""
        server = self.state().servers.get(name)
        process = processes.find(server) if server else None
        if process:
            process.send_signal(number)
        return process

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server by a signal and wait until it is gone. One that doesn't run is left alone."""
        if process := self.send(name, number):
            psutil.wait_procs([process], timeout=_END_S)

    def runs(self, name: str) -> bool:
        """Say whether a server's process is there."""
        server = self.state().servers.get(name)
        return server is not None and processes.find(server) is not None

    def restore(self) -> None:
        """Start what doesn't run and wait until all of it answers."""
        cluster.up(self.home, cluster.Options(), _Silent())
