"""Nodes in the background: `brewctl` processes that outlive the command that started them.

Each has a log, and a place in its home's state beside the sandbox's servers. Its environment
names the servers, since other users can't read the secrets there.
"""

import itertools
import os
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from brewctl import stdout
from brewctl.config import Settings, environment
from brewctl.delivery import registry
from brewctl.errors import BrewError, PortError
from brewctl.lab.play.nodes import ROLES, Role, program
from brewctl.lab.play.nodes import role as role_of
from brewctl.lifecycle import interrupts_held
from brewctl.roles.listening import VARIABLES
from brewctl.sandbox import processes, state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

READY_S = 30.0
# Longer than config's drain_s, after which a role gives up by itself and says what it left.
STOP_S = 15.0
_KILL_S = 5.0
_HOST = "127.0.0.1"
_PORTS = range(50081, 51081)  # the first is where clients look by default


class Condition(StrEnum):
    """Whether a node runs, in the words of `lab.look.state`."""

    RUNS = "runs"
    PAUSED = "paused"
    GONE = "gone"  # it ended without `brewctl stop`


class Ending(StrEnum):
    """How a node was stopped."""

    DRAINED = "drained"
    KILLED = "killed"  # it did not end in time
    GONE = "gone"  # it had ended before


@dataclass(frozen=True)
class Stopped:
    """A node that was stopped."""

    name: str
    ending: Ending
    last_line: str  # of its log: its counters, where it drained
    log: str


@dataclass(frozen=True)
class NodeStatus:
    """A node that was started and not stopped."""

    name: str
    role: str
    pid: int | None  # None where it is gone
    port: int  # 0 where it listens on none
    memory_bytes: int
    state: Condition
    log: str


def nodes(home: Path) -> dict[str, Server]:
    """Return the nodes that were started and not stopped, in the order of their start; some may be gone."""
    known = state.load(home)
    return known.nodes if known else {}


def status(home: Path) -> list[NodeStatus]:
    """Look at every node; empty where there is none."""
    rows = []
    for node in nodes(home).values():
        process = processes.find(node)
        rows.append(
            NodeStatus(
                name=node.name,
                role=node.role,
                pid=node.pid if process else None,
                port=node.port,
                memory_bytes=processes.memory(process) if process else 0,
                state=_condition(process),
                log=node.log,
            )
        )
    return rows


def start(home: Path, settings: Settings, roles: Sequence[str | Role], *, name: str = "") -> list[Server]:
    """Start a node of each role, order, publisher or a downstream's; see `wait_ready`.

    They are numbered as in the story, each with the first number that is not running. `name` is that of a single node:
    raises BrewError where one of that name runs. An order node takes the first free port from 50081 on.
    """
    with state.locked(home):
        known = state.load(home) or State.without_sandbox()
        taken = {node.name: node for node in known.nodes.values() if processes.find(node)}
        if name in taken:
            raise BrewError(f"{name} already runs", hint=f"`brewctl stop {name}` first, or choose another name")
        started = []
        for each in roles:
            role = role_of(each) if isinstance(each, str) else each
            node_name = name or _free_name(role.stem, taken)
            port = _free_port({node.port for node in taken.values()}) if role.name == "order" else 0
            with interrupts_held():
                node = _spawn(home, settings, node_name, role, port)
                known.nodes.pop(node.name, None)  # a gone one: this one comes last
                known.nodes[node.name] = taken[node.name] = node
                try:
                    state.save(home, known)
                except BrewError:  # nobody would know of it
                    processes.end([node], ((signal.SIGKILL, _KILL_S),))
                    raise
            started.append(node)
    return started


def wait_ready(node: Server, *, timeout_s: float = READY_S) -> None:
    """Wait until a node works: it listens, or has joined its group and was given its partitions, if only none.

    Raises BrewError with the end of its log where it ends before that, or is late; a late one runs on.
    """
    ready = role_of(node.role).ready
    deadline = time.monotonic() + timeout_s
    while True:
        ended = processes.find(node) is None
        lines = _lines(node)
        if any(ready.search(line) for line in lines):
            return
        if ended or time.monotonic() > deadline:
            what = "ended at its start" if ended else "is not ready yet"
            raise BrewError(f"{node.name} {what}\n{processes.indented(lines[-10:])}\nthe whole log is {node.log}")
        time.sleep(0.1)


def settle(home: Path, settings: Settings, node: Server, *, timeout_s: float = READY_S) -> Server:
    """Wait until a node works, and return it; where its port was taken since it was free, by one on the next port.

    Raises what `wait_ready` raises.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            wait_ready(node, timeout_s=deadline - time.monotonic())
            return node
        except BrewError:
            lost = any(PortError.words(_HOST, node.port) in line for line in _lines(node))
            if not lost or processes.find(node) or time.monotonic() > deadline:
                raise
        (node,) = start(home, settings, [node.role], name=node.name)


def stop(home: Path, names: Iterable[str], *, within_s: float = STOP_S) -> list[Stopped]:
    """Drain nodes at the same time, paused ones too, and kill what still runs after `within_s` seconds; forget them.

    Raises BrewError, and stops none, where a name is not that of a node.
    """
    chosen = [_node(home, name) for name in dict.fromkeys(names)]
    # While they drain others may use the home: a name is free once its process has ended.
    running = [node for node in chosen if processes.find(node)]
    with suppress(BrewError):  # of those that are late: they are killed
        # One that is paused hears nothing until it is continued.
        processes.end(running, ((signal.SIGTERM, 0.0), (signal.SIGCONT, within_s)))
    late = [node for node in running if processes.find(node)]
    processes.end(late, ((signal.SIGKILL, _KILL_S),))
    if chosen:
        with state.locked(home):
            known = state.load(home) or State.without_sandbox()
            known.nodes = {name: node for name, node in known.nodes.items() if node not in chosen}
            state.save(home, known)
    stopped = []
    for node in chosen:
        ending = Ending.KILLED if node in late else Ending.DRAINED if node in running else Ending.GONE
        stopped.append(Stopped(node.name, ending, (_lines(node) or [""])[-1], node.log))
    return stopped


def send(home: Path, name: str, number: signal.Signals) -> None:
    """Send a node a signal, such as SIGKILL, SIGSTOP or SIGCONT; whoever else has its pid now gets none.

    The state stays as it is: who is killed is gone. Raises BrewError where no node of that name runs.
    """
    node = _node(home, name)
    process = processes.find(node)
    with suppress(psutil.NoSuchProcess):
        if process:
            process.send_signal(number)
            return
    raise BrewError(f"{name} is gone", hint=f"its log is {node.log}")


def serving(home: Path) -> dict[str, str]:
    """Return the variables by which order nodes of a secured sandbox, which runs, serve TLS."""
    files = state.serving(home)
    return dict(zip(VARIABLES, files, strict=False)) if files else {}


def _condition(process: psutil.Process | None) -> Condition:
    if process is None:
        return Condition.GONE
    return Condition.PAUSED if processes.is_paused(process) else Condition.RUNS


def _node(home: Path, name: str) -> Server:
    known = nodes(home)
    if name not in known:
        hint = f"there are {', '.join(known)}" if known else "none was started: see `brewctl start --help`"
        raise BrewError(f"no node {name[:80]!r} in the background", hint=hint)
    return known[name]


def _free_name(stem: str, taken: Collection[str]) -> str:
    return next(name for number in itertools.count(1) if (name := f"{stem}-{number}") not in taken)


def _free_port(taken: Collection[int]) -> int:
    for port in _PORTS:
        # One that was just started does not listen yet.
        if port not in taken and processes.is_free(port):
            return port
    hint = "stop a node that `brewctl status` names, or run `brewctl serve order --port` with another one"
    raise BrewError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free", hint=hint)


def _spawn(home: Path, settings: Settings, name: str, role: Role, port: int) -> Server:
    logs, place = home / "logs", home / "nodes"
    arguments = (*role.command, *(("--port", str(port)) if port else ()))
    try:
        for folder in (logs, place):
            folder.mkdir(mode=0o700, exist_ok=True)
        return processes.spawn(
            name,
            program(name, *arguments),
            port=port,
            log=logs / f"{name}.log",
            # A downstream of the user's own works where it was started: it may read files there.
            cwd=place if role.name in ROLES or registry.is_own(role.name) else Path.cwd(),
            env={
                **({} if settings.configured & {"database_url", "brokers"} else serving(home)),
                **os.environ,
                **environment(settings),
                **stdout.ENVIRONMENT,
                "BREW_HOME": str(home),
            },
            role=role.name,
        )
    except OSError as error:
        raise BrewError(f"{name} can't be started ({(error.strerror or str(error)).lower()})") from error


def _lines(node: Server) -> list[str]:
    """What it wrote to its log, the end of it."""
    return processes.recent(Path(node.log), start=node.log_start)
