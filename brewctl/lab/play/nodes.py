"""Replicas of roles as `brewctl` processes that the lab watches, stops and kills."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from brewctl import stdout
from brewctl.config import HTTP_VARIABLE, Settings, environment
from brewctl.delivery import registry
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.sandbox import processes
from brewctl.signals import interrupts_held

_ASSIGNED = re.compile(r"partitions assigned \[([\d, ]*)\]")
_STARTED = re.compile(r"publisher started")
_LISTENS = re.compile(r"listening on (\S+)")


@dataclass(frozen=True)
class Role:
    """A role: its name, its nodes' names, their command, and the line that a ready node prints."""

    name: str
    stem: str  # the beginning of its nodes' names
    command: tuple[str, ...]
    ready: re.Pattern[str]


ROLES = {
    role.name: role
    for role in (
        Role("order", "order", ("serve", "order"), _LISTENS),
        Role("publisher", "publisher", ("publish",), _STARTED),
    )
}
# A node's name has 64 characters at most: this leaves room for a number after the stem.
_STEM_CHARACTERS = 58


def role(name: str, downstream: Downstream | None = None, *, app_dir: str = "") -> Role:
    """Return the role of this name: one of ROLES, or a downstream.

    For MODULE:NAME, give the `downstream`. Without it, the role has no stem, and can only be waited for.
    """
    if name in ROLES:
        return ROLES[name]
    if downstream is None and registry.is_own(name):
        downstream = registry.find(name)
    stem = (downstream.node or downstream.group)[:_STEM_CHARACTERS] if downstream else ""
    stem += "-group" if stem in ROLES else ""  # the names order-… and publisher-… mean other roles
    options = ("--app-dir", app_dir) if app_dir else ()
    return Role(name, stem, ("consume", name, *options), _ASSIGNED)


def program(name: str, *arguments: str, module: str = "brewctl") -> list[str]:
    """Return the command line of a node of this name, for example with the arguments `consume inventory`.

    `module`: brewctl, or a module that runs it with additions.
    """
    # -P: do not import modules from the working directory.
    return [sys.executable, "-P", "-m", module, *arguments, "--node", name]


class Node:
    """A replica's process. Its stdout lines are kept, and passed to `on_line`; its stderr goes to `log`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        settings: Settings,
        *,
        log: Path,
        on_line: Callable[[str], None],
        module: str = "brewctl",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self.log = log
        self._arrived = threading.Condition()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - ourselves
                program(name, *arguments, module=module),
                env={**os.environ, **environment(settings), **stdout.ENVIRONMENT, HTTP_VARIABLE: "", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a Ctrl-C must not reach the node: this process stops it
            )
        self._reader = threading.Thread(target=self._read, args=(on_line,), name=f"{name}-stdout")
        self._reader.start()

    def _read(self, on_line: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._arrived:
                    self.lines.append(line.rstrip("\n"))
                    self._arrived.notify_all()
                on_line(line.rstrip("\n"))
        with self._arrived:
            self._arrived.notify_all()

    @property
    def assignment(self) -> list[int]:
        """The partitions of its last assignment."""
        for line in reversed(self.lines):
            if match := _ASSIGNED.search(line):
                return [int(number) for number in match[1].split(",") if number.strip()]
        return []

    @property
    def address(self) -> str:
        """The address that it listens on; "" before it does."""
        return next((match[1] for line in self.lines if (match := _LISTENS.search(line))), "")

    @property
    def ready(self) -> bool:
        """Whether it is ready: it listens, publishes, or has got an assignment."""
        role = ROLES.get(self.name.rpartition("-")[0])
        ready = role.ready if role else _ASSIGNED  # of a downstream
        return any(ready.search(line) for line in self.lines)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def wait_for(self, what: str, seen: Callable[["Node"], bool], *, timeout_s: float = 30.0) -> None:
        """Wait until `seen` holds. Raises BrewError with the end of its log if it ends before that, or is late."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while not seen(self):
                if not self.alive:
                    raise BrewError(f"{self.name} ended with {self.process.returncode}, before {what}\n{self._tail()}")
                if time.monotonic() > deadline:
                    raise BrewError(f"{self.name}: no {what} within {timeout_s:g} s\n{self._tail()}")
                self._arrived.wait(0.1)

    def wait_ready(self, *, timeout_s: float = 30.0) -> None:
        """Wait until it is ready. Raises what `wait_for` raises."""
        self.wait_for("readiness", lambda node: node.ready, timeout_s=timeout_s)

    def ended(self, *, within_s: float) -> int:
        """Wait until it has ended and all its lines were read; return its exit code. Raises TimeoutExpired."""
        code = self.process.wait(within_s)
        self._reader.join(within_s)
        return code

    def kill(self) -> None:
        """Send SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _tail(self) -> str:
        return processes.indented(processes.recent(self.log)[-10:])


class Nodes:
    """A set of nodes. As a context manager it ends all of them."""

    def __init__(
        self,
        settings: Settings,
        *,
        logs: Path,
        on_line: Callable[[str], None],
        module: str = "brewctl",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Make an empty set. `module`: as in `program`; `env`: further environment variables of the nodes."""
        self._settings = settings
        self._env = env
        self._logs = logs
        self._on_line = on_line
        self._module = module
        self.started: list[Node] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, *arguments: str) -> Node:
        """Start a node, for example `start("inventory-1", "consume", "inventory")`."""
        log = self._logs / f"{name}.log"
        if all(node.name != name for node in self.started):
            log.unlink(missing_ok=True)  # left by an earlier run
        with interrupts_held():  # an interrupt here could leave a running process that is not in `started`
            node = Node(
                name, arguments, self._settings, log=log, on_line=self._on_line, module=self._module, env=self._env
            )
            self.started.append(node)
        return node

    def stop(self, *, within_s: float = 15.0) -> list[Node]:
        """Drain all running nodes at the same time; kill late ones. Returns those that did not drain cleanly."""
        running = [node for node in self.started if node.alive]
        for node in running:
            node.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + within_s
        for node in running:
            try:
                node.ended(within_s=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.kill()
        return [node for node in running if node.process.returncode != 0]
