"""Background nodes: `brewctl` processes that outlive the command that started them.

Each has a log, and an entry in its home's state file. It gets the servers' addresses and secrets in
its environment, which other users can't read.
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
from brewctl.roles.listening import VARIABLES
from brewctl.sandbox import processes, state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State
from brewctl.signals import interrupts_held

READY_S = 30.0
# Longer than drain_s of the limits, after which a role gives up draining by itself.
STOP_S = 15.0
_KILL_S = 5.0
_HOST = "127.0.0.1"
_PORTS = range(50081, 51081)  # clients use the first by default


class Condition(StrEnum):
    """The state of a node, as `lab.look` shows it."""

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
    last_line: str  # of its log; the counters of a node that drained
    log: str


@dataclass(frozen=True)
class NodeStatus:
    """A node that was started and not stopped."""

    name: str
    role: str
    pid: int | None  # None: it is gone
    port: int  # 0: it listens on none
    memory_bytes: int
    state: Condition
    log: str


def nodes(home: Path) -> dict[str, Server]:
    """Return the nodes that were started and not stopped, in the order of their start; some may be gone."""
    known = state.load(home)
    return known.nodes if known else {}


def status(home: Path) -> list[NodeStatus]:
    """Return the state of every node."""
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
    """Start a node of each role. Does not wait until they are ready: see `wait_ready`.

    Nodes are numbered, with the first numbers that are free. `name`: the name of a single node; raises BrewError if a
    node of that name runs. An order node takes the first free port from 50081 on.
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
                known.nodes.pop(node.name, None)  # an ended node's entry: the new one comes last
                known.nodes[node.name] = taken[node.name] = node
                try:
                    state.save(home, known)
                except BrewError:  # without an entry no command could stop it
                    processes.end([node], ((signal.SIGKILL, _KILL_S),))
                    raise
            started.append(node)
    return started


def wait_ready(node: Server, *, timeout_s: float = READY_S) -> None:
    """Wait until a node is ready: it listens, or its group has assigned it partitions, which may be none.

    Raises BrewError with the end of its log if it ends before that, or is late. A late node goes on.
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
    """Wait until a node is ready, and return it. If another process took its port first, start one on the next port.

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
    """Drain nodes, also paused ones, at the same time; kill those that run after `within_s` seconds. Forget all.

    Raises BrewError, and stops none, if a name is unknown.
    """
    chosen = [_node(home, name) for name in dict.fromkeys(names)]
    # The home is not locked while nodes drain: other commands may use it. A name is free once its process has ended.
    running = [node for node in chosen if processes.find(node)]
    with suppress(BrewError):  # late nodes are killed below
        # A paused process handles SIGTERM only after SIGCONT.
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
    """Send a signal to a node, such as SIGKILL, SIGSTOP or SIGCONT, but never to another process with its pid.

    The node's entry stays: a killed node is shown as gone. Raises BrewError if no node of that name runs.
    """
    node = _node(home, name)
    process = processes.find(node)
    with suppress(psutil.NoSuchProcess):
        if process:
            process.send_signal(number)
            return
    raise BrewError(f"{name} is gone", hint=f"its log is {node.log}")


def serving(home: Path) -> dict[str, str]:
    """Return the variables with order-service's TLS files, if a secured sandbox runs; else none."""
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
        # `taken` has the ports of nodes that have just started and do not listen yet.
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
            # A downstream of the user's own runs in the present working directory, as it may read files there.
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
    """Return the last lines of a node's log, of this process only."""
    return processes.recent(Path(node.log), start=node.log_start)
