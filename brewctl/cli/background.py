"""`brewctl start`, `stop`, `logs`: roles as background processes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl import config
from brewctl.cli import completion, options, output
from brewctl.errors import BrewError, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.delivery.downstream import Downstream
    from brewctl.lab.play.background import Stopped
    from brewctl.sandbox.server import Server

_MOST_NODES = 100
UNDRAINED = "uncommitted events will be delivered again"


def start(
    roles: Annotated[
        list[str],
        typer.Argument(
            help="One node for each: order, publisher, inventory, notifications, MODULE:NAME. ROLE 3 starts three.",
            metavar="ROLE…",
            autocompletion=completion.roles,
        ),
    ],
    node: Annotated[
        str,
        typer.Option(
            help="Name of a single node.", callback=options.node_name, show_default="numbered, as order-1, order-2"
        ),
    ] = "",
    app_dir: options.AppDir = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Run nodes in the background and wait until they are ready.

    Order nodes take ports from 50081 on; `create-order` and `load` find them.

    Exit 1 where a node does not get ready. The other nodes go on, as all nodes do after a Ctrl-C.
    """
    wanted = _counted(roles)
    if node and len(wanted) > 1:
        raise UsageError("--node names a single node", hint="leave it out, or start one role at a time")
    found = _downstreams(wanted, app_dir)
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    from brewctl.lab.play import background, nodes

    _require_servers(settings, wanted, found)
    cast = [nodes.role(name, found.get(name), app_dir=app_dir) for name in wanted]
    home = config.home()
    if late := _await_ready(home, settings, background.start(home, settings, cast, name=node)):
        raise BrewError(f"{', '.join(late)} did not get ready", hint="see `brewctl status` for what runs")
    output.note("next: brewctl logs --follow; `brewctl stop --all`, or `brewctl down`, ends them")


def stop(
    nodes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of nodes, as in `brewctl status`.", metavar="NODE…", autocompletion=completion.nodes
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every node in the background.")] = False,
) -> None:
    """Drain background nodes, and print the counters of each.

    They drain at the same time. The counters are in each node's last line.

    Exit 1 where a node had ended before, or had to be killed.
    """
    from brewctl.lab.play import background

    home = config.home()
    there = list(background.nodes(home))
    if bool(nodes) == every:
        hint = f"there are {', '.join(there)}" if there else "none was started: see `brewctl start --help`"
        raise UsageError("`stop` needs nodes or --all", hint=hint)
    stopped = background.stop(home, nodes or there)
    if not stopped:
        output.emit(f"nothing was running in {home}")
    report(stopped)
    if others := [node.name for node in stopped if node.ending != background.Ending.DRAINED]:
        raise BrewError(f"{', '.join(others)} did not drain", hint=UNDRAINED)


def report(stopped: "Sequence[Stopped]") -> None:
    """Print a line for each stopped node: its counters, or how it ended."""
    from brewctl.lab.play.background import STOP_S, Ending

    for node in stopped:
        match node.ending:
            case Ending.DRAINED:
                output.emit(output.plain(node.last_line))
            case Ending.KILLED:
                output.emit(f"[{node.name}] killed: it did not end within {STOP_S:g} s; its log is {node.log}")
            case Ending.GONE:
                output.emit(f"[{node.name}] had ended before; its log is {node.log}")


def logs(
    nodes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Nodes whose logs to show.",
            metavar="NODE…",
            show_default="all",
            autocompletion=completion.logged_nodes,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new lines too, until Ctrl-C.")] = False,
    tail: Annotated[
        int | None, typer.Option(help="Show only this many last lines of each node.", min=0, show_default="all")
    ] = None,
) -> None:
    """Show the logs of background nodes, merged by time.

    Also those of ended nodes. A line without a time, such as a role's line on stdout, follows the line before it.
    """
    from brewctl.lab.play import logs as files

    home = config.home()
    known = files.known(home)
    for name in nodes or []:
        if name not in known:
            hint = f"there are logs of {', '.join(known)}" if known else "see `brewctl start --help`"
            raise BrewError(f"no log of {name[:80]!r} in {home / 'logs'}", hint=hint)
    if not known:
        output.note(f"no logs in {home / 'logs'}")
    shown = _LinePrinter(nodes or known)
    for line in files.read(home, nodes or (), tail=tail, follow=follow):
        shown.emit(line.node, line.text)


def _counted(words: Sequence[str]) -> list[str]:
    """Return a role for each node to start: `inventory 2` stands for `inventory inventory`."""
    wanted: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        if not word.isdecimal():
            wanted.append(word)
            continue
        if not before or before.isdecimal() or not 1 <= int(word) <= _MOST_NODES:
            hint = f"a number from 1 to {_MOST_NODES} follows a role, as in inventory 2"
            raise UsageError(f"{word[:80]!r} is no number of nodes", hint=hint)
        wanted += [before] * (int(word) - 1)
    return wanted


def _downstreams(roles: Sequence[str], app_dir: str) -> "dict[str, Downstream]":
    """Return the user's own downstreams among these roles, by name. Raises UsageError for an unknown role."""
    from brewctl.delivery import registry
    from brewctl.lab.play.nodes import ROLES

    known = (*ROLES, *config.SHORT_NAMES)
    for role in roles:
        if role not in known and ":" not in role:
            hint = f"choose among {', '.join(known)}, or MODULE:NAME for a downstream of your own"
            raise UsageError(f"no role {role[:80]!r}", hint=hint)
    return {role: registry.find(role, app_dir) for role in roles if role not in known}


def _require_servers(settings: "Settings", roles: Sequence[str], downstreams: "Mapping[str, Downstream]") -> None:
    # A missing server is reported once here, instead of in the log of each node.
    from brewctl.delivery import broker, database, registry
    from brewctl.delivery.schema import registration

    own = {role: registry.find(role) for role in roles if registry.is_own(role)}
    apart = registration.apart(settings)
    if any(role not in downstreams and registry.full_name(role) not in apart for role in roles):
        with database.connect(settings) as connection:
            registration.require_story(settings, connection)
    for name, downstream in (own | dict(downstreams)).items():
        registration.check(settings, downstream, registry.full_name(name))
    if set(roles) - {"order", "publisher"}:  # these two start without Kafka
        broker.require_topic(settings)


def _await_ready(home: Path, settings: "Settings", started: "Sequence[Server]") -> list[str]:
    """Print each node once it is ready. Returns the names of the nodes that did not get ready in time."""
    from brewctl.lab.play import background

    width = max(len(node.name) for node in started)
    output.emit(f"{'node':<{width}}{'pid':>9}  {'at':<17}log")
    deadline, late = time.monotonic() + background.READY_S, []
    for node in started:
        try:
            ready = background.settle(home, settings, node, timeout_s=deadline - time.monotonic())
        except BrewError as error:
            output.note("\n".join(output.plain(line) for line in error.message.splitlines()))
            late.append(node.name)
        else:
            place = f"127.0.0.1:{ready.port}" if ready.port else ready.role
            output.emit(f"{ready.name:<{width}}{ready.pid:>9}  {place:<17}{ready.log}")
    return late


class _LinePrinter:
    """Prints the log lines of many nodes, with the node's name in front, in a terminal in the node's colour."""

    def __init__(self, nodes: Iterable[str]) -> None:
        from rich.console import Console

        from brewctl.lab import look

        console = Console()
        self._in_colour = console.is_terminal and not console.is_dumb_terminal and not console.no_color
        self._colours = look.colours(nodes)
        self._width = max(map(len, self._colours), default=0)

    def emit(self, node: str, text: bytes) -> None:
        """Print a line. A new node does not change the colours of the others."""
        from rich.style import Style

        from brewctl.lab import look

        if node not in self._colours:
            self._colours[node] = look.colours([*self._colours, node])[node]
            self._width = max(self._width, len(node))
        prefix = f"{node:<{self._width}} |"
        if self._in_colour:
            prefix = Style(color=self._colours[node]).render(prefix)
        output.emit(f"{prefix} {output.plain(output.text(text))}")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: brewctl start order order inventory inventory notifications")(start)
    app.command(epilog="Example: brewctl stop inventory-1")(stop)
    app.command(epilog="Example: brewctl logs order-1 inventory-1 --follow --tail 10")(logs)
