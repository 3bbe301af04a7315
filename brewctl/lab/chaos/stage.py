"""The stage of a scenario: the roles' processes, the sandbox's servers, and the network between them."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import psycopg

from brewctl import stdout
from brewctl.config import Settings, environment
from brewctl.delivery.database.session import explicit, server
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import homes
from brewctl.errors import BrewError, ExitCode
from brewctl.lab.chaos import ledger
from brewctl.lab.network.proxy import Proxy
from brewctl.lab.play.cast import ORDER_NODES, Cast
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lab.play.servers import Servers
from brewctl.sandbox import processes
from brewctl.security import DatabaseSecurity, Secret

_END_S = 20.0
_READY_S = 60.0


class SkippedError(Exception):
    """The scenario can't run on this machine. The message is the reason."""


class Stage:
    """The nodes and servers of one scenario. As a context manager it ends all that it started."""

    def __init__(
        self,
        settings: Settings,
        servers: Servers,
        *,
        cast: Cast,
        logs: Path,
        network: bool,
        session_s: float,
        chance: random.Random,
        on_line: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.servers = servers
        self.cast = cast
        self.chance = chance
        self.halt = threading.Event()
        # Called every two seconds while the scenario waits for effects.
        self.while_waiting: list[Callable[[], None]] = []
        self._logs = logs
        self._network = network
        self._session_s = session_s
        self._on_line = on_line
        self._ports = {name: processes.free_port() for name in ORDER_NODES}
        self._cast: dict[str, Node] = {}
        self._ended_by_us: list[Node] = []
        self._closing = contextlib.ExitStack()
        self.proxies: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._network:
                self.proxies = {proxy.name: stack.enter_context(proxy) for proxy in self._lay_network()}
            self._nodes = stack.enter_context(
                Nodes(self._routed(), logs=self._logs, on_line=self._on_line, module=ledger.MODULE)
            )
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.halt.set()
        for node in self._cast.values():
            if node.alive:
                node.process.send_signal(signal.SIGCONT)
        self._closing.close()

    @property
    def addresses(self) -> list[str]:
        """The addresses to which clients send orders."""
        if self._network:
            return [self.proxies[name].address for name in ORDER_NODES]
        return [f"127.0.0.1:{self._ports[name]}" for name in ORDER_NODES]

    def node(self, name: str) -> Node:
        """Return the newest process of a node."""
        return self._cast[name]

    def start(self, name: str) -> Node:
        """Start a node, unless it runs. Does not wait until it is ready."""
        if name in self._cast and self._cast[name].alive:
            return self._cast[name]
        if name in ORDER_NODES:
            arguments = ("--port", str(self._ports[name]))
        else:
            arguments = ("--session-timeout", f"{self._session_s:g}")
        self._cast[name] = self._nodes.start(name, *self.cast.commands[name], *arguments)
        return self._cast[name]

    def start_all(self) -> None:
        """Start all nodes, and wait until they are ready."""
        for name in self.cast.nodes:
            self.start(name)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until order-services listen and consumers have joined. Raises BrewError if a node ends before that."""
        deadline = time.monotonic() + _READY_S
        for name in self.cast.nodes:
            while True:
                try:
                    self.node(name).wait_ready(timeout_s=deadline - time.monotonic())
                    break
                except BrewError:
                    if not self._gave_up(self.node(name)):
                        raise
                self.revive()

    def revive(self) -> None:
        """Restart nodes that ended at their start because a server was away, as a supervisor would."""
        for name, node in list(self._cast.items()):
            if self._gave_up(node) and node not in self._ended_by_us:
                self._ended_by_us.append(node)
                self.start(name)

    @staticmethod
    def _gave_up(node: Node) -> bool:
        return node.process.poll() == ExitCode.UNREACHABLE and not node.ready

    def kill(self, name: str) -> None:
        """Kill a node, also a paused one."""
        self._ended_by_us.append(self.node(name))
        self.node(name).kill()

    def terminate(self, name: str) -> None:
        """Let a node drain. Raises BrewError if it does not end cleanly."""
        node = self.node(name)
        if not node.alive:
            return
        self._ended_by_us.append(node)
        node.process.send_signal(signal.SIGTERM)
        try:
            code = node.ended(within_s=_END_S)
        except subprocess.TimeoutExpired:
            node.kill()
            code = node.process.returncode
        if code:
            raise BrewError(f"{name} ended with {code} after SIGTERM", hint=f"see {node.log}")

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a node, if it runs."""
        if self.node(name).alive:
            self.node(name).process.send_signal(number)

    def stop(self) -> list[str]:
        """Drain all nodes. Returns a line for each that had ended by itself, or did not drain cleanly."""
        fell = [node for node in self._nodes.started if not node.alive and node not in self._ended_by_us]
        return [
            *(f"{node.name} ended by itself with {node.process.returncode}: see {node.log}" for node in fell),
            *(f"{node.name} did not drain after SIGTERM" for node in self._nodes.stop(within_s=_END_S)),
        ]

    def brewctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, not through the faulty network. Its effects are written to the ledger too."""
        return subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, "-P", "-m", ledger.MODULE, *arguments],
            env={**os.environ, **environment(self.settings), **stdout.ENVIRONMENT, "BREW_HOME": str(self.servers.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
        )

    @contextlib.contextmanager
    def postgres(self, downstream: Downstream | None = None) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """Open an administrator's connection, not through the faulty network.

        It is to the story's database, or to the database of `downstream`.
        """
        at = self.settings
        if downstream:
            at = next(home.settings for home in homes.of(self.settings) if downstream.group in home.groups)
        given = explicit(server(at.database_url, at.database_security))
        with psycopg.connect(
            **given | {"application_name": "chaos", "connect_timeout": 5}, autocommit=True
        ) as connection:
            yield connection

    def _lay_network(self) -> Iterator[Proxy]:
        known = self.servers.state()
        yield Proxy("postgres", ("127.0.0.1", known.postgres_port))
        for name, (upstream, port) in zip(self.servers.brokers, known.kafka_detours, strict=True):
            yield Proxy(name, ("127.0.0.1", upstream), port=port)
        for name in ORDER_NODES:
            yield Proxy(name, ("127.0.0.1", self._ports[name]))

    def _routed(self) -> Settings:
        """Return the settings of the roles: with the proxies' addresses, if there are proxies."""
        if not self._network:
            return self.settings
        postgres = self.proxies["postgres"]
        return replace(
            self.settings,
            # The URL from a file would have the server's own port.
            database_url=psycopg.conninfo.make_conninfo(self.settings.database_url, port=postgres.port),
            database_security=replace(self.settings.database_security, url=DatabaseSecurity.url),
            own_databases=tuple(
                Secret(each.variable, psycopg.conninfo.make_conninfo(each.read(), port=postgres.port))
                for each in self.settings.own_databases
            ),
            brokers=tuple(self.proxies[name].address for name in self.servers.brokers),
        )
