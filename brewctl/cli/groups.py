"""`brewctl groups`: the consumer groups of the topic, and their lag."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import groups_reset, options, output, watching
from brewctl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from brewctl.delivery.broker import Admin, GroupMember
    from brewctl.delivery.topics.group_progress import GroupProgress
    from brewctl.overview.consumer_groups import GroupView

_EVERY_S = 1.0
_ACROSS = 6  # partitions beside each other in 80 columns
_LABEL = 15
_CELL = 10


def show(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every second, until Ctrl-C.")] = False,
    as_json: options.AsJson = False,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Show the topic's consumer groups, their members and lag.

    Lag is counted from committed offsets. Consumers commit once a second: until then, processed records count as lag.
    """
    if ctx.invoked_subcommand:
        if watch or as_json or brokers or topic or downstream:
            raise UsageError(f"options of `groups {ctx.invoked_subcommand}` must follow it")
        return
    settings = options.settings(brokers=brokers, topic=topic, downstreams=downstream)
    from brewctl.delivery.broker import open_admin
    from brewctl.overview import consumer_groups

    def look(admin: "Admin") -> list["GroupView"]:
        return consumer_groups.groups(admin, settings, consumer_groups.readers(admin, settings))

    with open_admin(settings) as admin:
        first = look(admin)
    later = watching.later(lambda: open_admin(settings.impatient), look, every_s=_EVERY_S) if watch else ()
    if sys.stdout.isatty() and not as_json:
        watching.show_live(first, later, _drawn)
    else:
        watching.show_lines(first, later, _emit_json if as_json else _print, server="kafka")


def _drawn(views: list["GroupView"]) -> "Group":
    from rich.console import Group
    from rich.text import Text

    from brewctl.lab import look

    colours = look.colours(member.client_id for view in views for member in view.members)
    lines: list[Text] = []
    for view in views:
        heading = Text.assemble(
            (output.fitted(view.name, 2 * _LABEL), "bold"),
            (f"  {_state(view)}", "green" if view.state == "Stable" else "yellow"),
            (f"  {view.assignor}" if view.assignor else "", "dim"),
            (f"  lag {view.lag}", "yellow" if view.lag else "green"),
        )
        lines.append(heading)
        lines += [Text(f" {line}", style="red") for line in _lost(view)]
        for start in range(0, len(view.partitions), _ACROSS):
            lines += _rows(view.members, view.partitions[start : start + _ACROSS], colours)
        lines.append(Text())
    return Group(*lines)


def _rows(
    members: tuple["GroupMember", ...], partitions: tuple["GroupProgress", ...], colours: dict[str, str]
) -> Iterator["Text"]:
    """Draw a strip for each member; below them the group's offsets and lag in each partition."""
    from rich.text import Text

    from brewctl.lab import look

    def row(label: str, values: list[int | None], style: str = "") -> Text:
        cells = (f"{'-' if value is None else value:>{_CELL - 1}} " for value in values)
        return Text(f" {label:<{_LABEL}}{''.join(cells)}", style=style)

    yield row("partition", [each.partition for each in partitions], "dim")
    for member in members:
        strip = row(output.fitted(member.client_id, _LABEL), [], colours[member.client_id])
        for each in partitions:
            cell = look.strip([each.partition], member.partitions, colour=colours[member.client_id])
            strip.append(" " * (_CELL - len(cell)))
            strip.append_text(cell)
        yield strip
    yield row("committed", [each.committed for each in partitions])
    yield row("end", [each.end for each in partitions])
    yield row("lag", [each.lag for each in partitions], "yellow" if any(each.lag for each in partitions) else "green")


def _print(views: list["GroupView"]) -> None:
    output.emit(_row("group", "state", "partition", "owner", "committed", "end", "lag"))
    for view in views:
        for each in view.partitions:
            committed = "-" if each.committed is None else each.committed
            owner = output.fitted(each.owner or "-", _LABEL)
            output.emit(
                _row(output.fitted(view.name, 13), _state(view), each.partition, owner, committed, each.end, each.lag)
            )

    for line in [line for view in views for line in _lost(view)]:
        output.note(line)


def _lost(view: "GroupView") -> list[str]:
    lost = [(each.partition, each.lost) for each in view.partitions if each.lost]
    lines = [f"{output.plain(view.name)}: partition {partition}: {text}" for partition, text in lost]
    return [*lines, "next: brewctl outbox republish --missing --dry-run"] if lines else []


def _row(group: str, state: str, *rest: object) -> str:
    partition, owner, committed, end, lag = rest
    return f"{group:<13} {state:<11} {partition:>9} {owner:<{_LABEL}} {committed:>9} {end:>9} {lag:>8}"


def _state(view: "GroupView") -> str:
    """Shorten Kafka's state to a column's width: both PreparingRebalance and CompletingRebalance are Rebalancing."""
    return "Rebalancing" if view.state.endswith("Rebalance") else output.fitted(view.state, 11)


def _emit_json(views: list["GroupView"]) -> None:
    output.emit_json([_summary(view) for view in views])


def _summary(view: "GroupView") -> dict[str, object]:
    return {
        "name": view.name,
        "state": view.state,
        "assignor": view.assignor or None,
        "lag": view.lag,
        "members": [asdict(member) for member in view.members],
        "partitions": [
            {
                **{name: value for name, value in asdict(each).items() if name != "known"},
                "owner": each.owner or None,
                "lag": each.lag,
                "lost": each.lost or None,
            }
            for each in view.partitions
        ],
    }


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    groups = typer.Typer(
        callback=show, invoke_without_command=True, epilog="Example: brewctl groups --watch", no_args_is_help=False
    )
    groups.command(epilog="Example: brewctl groups reset inventory --to earliest --dry-run")(groups_reset.reset)
    app.add_typer(groups, name="groups")
