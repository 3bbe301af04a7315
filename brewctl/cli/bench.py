"""`brewctl bench`: the speed of each leg of the flow, compared with what this machine can do at the moment."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewctl.cli import options, output
from brewctl.errors import UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.lab.bench.figures import Figure
    from brewctl.lab.bench.ground import Sizes

_WHAT = {
    "create": "Create at 1, 8 and 64 in flight, and at 1 without the publisher",
    "workers": "Create with --workers 1, 2, 4 … as many as cores",
    "publish": "20,000 rows that wait for a publisher, by each Kafka client",
    "consume": "20,000 records that wait for one node, in each form, and for two",
    "flow": "five nodes at 1, 8, 64 in flight and at 20, 100 orders a second",
    "latency": "of flow only the 100 orders a second",
    "memory": "each role over 100,000 orders",
    "startup": "the command line",
    "growth": "Create and the publisher with a million orders; takes minutes",
    "queue": "100,000 rows of few aggregates, or behind an old snapshot; minutes",
    "migrate": "db migrate on --rows orders of the first schema, under load; minutes",
    "soak": "five nodes and retention for --duration: nothing grows; takes an hour",
}
_NAMED_ONLY = frozenset({"latency", "growth", "queue", "migrate", "soak"})  # part of another leg, or long
_BUSY = 0.1  # share of all cores that other programs may use before the figures suffer
_MOST_REPEATS = 100


def bench(
    leg: Annotated[
        list[str] | None,
        typer.Option(
            help="A leg to measure; several times. See --list.", metavar="NAME", show_default="all but the long ones"
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option(help="How often to measure; figures are medians.", min=1, max=_MOST_REPEATS)
    ] = 1,
    against: Annotated[
        Path | None, typer.Option(help="Compare with the --json of an earlier run.", metavar="FILE.json")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds that the soak takes.", metavar="SECONDS", min=60, max=864_000, show_default="3600"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Orders a second that the soak creates.", min=1, max=100_000, show_default="50"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Describe the legs and do nothing.")] = False,
    row_count: Annotated[
        int | None,
        typer.Option(
            "--rows",
            help="Orders that migrate starts with; 10,000,000 take 12 GB and half an hour.",
            min=1000,
            metavar="NUMBER",
            show_default="1,000,000",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox running afterwards.")] = False,
    as_json: options.AsJson = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Measure how fast each leg of the flow is, beside its floor.

    Starts a sandbox where no servers are configured. Empties tables and topics.

    With --repeat it also shows the lowest and the highest value. Ctrl-C shows what was measured so far.

    Exit 1 where a target is missed, which may happen on a machine with other work.

    docs/performance.md explains the floors and the limits.
    """
    if list_:
        for name, what in _WHAT.items():
            output.emit(f"{name:<9} {what}")
        return
    from brewctl import config
    from brewctl.cli.sandbox import emptied
    from brewctl.errors import UsageError
    from brewctl.sandbox import parts

    chosen = _chosen(leg)
    if row_count and "migrate" not in chosen:
        raise UsageError("--rows is for one leg", hint="add `--leg migrate`")
    soak = {name: value for name, value in {"soak_s": duration, "soak_rate": rate}.items() if value is not None}
    if soak and "soak" not in chosen:
        raise UsageError("--duration and --rate are of the soak", hint="add --leg soak")
    parts.require()  # the floors are measured with them, even on servers of the user's own
    from brewctl.lab.bench import figures
    from brewctl.lab.bench.ground import Sizes

    sizes = Sizes(rows=row_count, **soak)
    before = figures.earlier(against) if against else {}
    measured: list[Figure] = []
    machine: dict[str, Any] = {}
    try:
        with emptied("bench", database_url=database_url, brokers=brokers, topic=topic, keep=keep, yes=yes) as settings:
            machine |= _machine(settings)
            _measure(settings, chosen, config.home() / "logs" / "bench", measured, times=repeat, sizes=sizes)
    finally:
        # Show what was measured even after a Ctrl-C or an error.
        if measured:
            _show(measured, before, machine, as_json=as_json)
    _judge(measured)


def _chosen(names: Sequence[str] | None) -> list[str]:
    for name in names or ():
        if name not in _WHAT:
            raise UsageError(f"no leg {name[:80]!r}", hint="see `brewctl bench --list`")
    if not names:
        return [name for name in _WHAT if name not in _NAMED_ONLY]
    # `latency` is a part of `flow`: it is not measured twice.
    return [name for name in _WHAT if name in names and not (name == "latency" and "flow" in names)]


def _machine(settings: "Settings") -> Mapping[str, Any]:
    """Describe this machine; print a note if it is not idle."""
    from brewctl import config
    from brewctl.lab.bench import cpu, machine

    servers = [pid for pids in cpu.server_pids(settings).values() for pid in pids]
    found = machine.described(config.home(), ours=servers)
    busy = found["others_busy"]
    if busy is not None and busy > _BUSY:
        output.note(f"other work has {busy * 100:.0f} % of the cores' time: the figures are not this machine's best")
    # Figures with another Kafka client, or another number of brokers, can't be compared either.
    return {
        **found,
        "brokers": len(settings.brokers),
        "kafka_client": settings.kafka_client,
    }


def _measure(
    settings: "Settings",
    chosen: Sequence[str],
    logs: Path,
    measured: "list[Figure]",
    *,
    times: int,
    sizes: "Sizes",
) -> None:
    """Measure all legs, `times` times in a row: changes of the machine's speed within an hour affect all legs alike."""
    from brewctl import log
    from brewctl.delivery import database
    from brewctl.lab.bench import LEGS
    from brewctl.lab.bench.ground import Ground

    log.configure(node="bench")
    logging.getLogger("brewctl").setLevel(logging.ERROR)  # the inbox, which is measured in this process, would log
    with database.connect(settings) as connection:
        ground = Ground(settings, connection, logs=logs, tell=lambda text: output.note(f"  {text}"), sizes=sizes)
        for time in range(times):
            for name in chosen:
                output.note(f"{name}{f' ({time + 1} of {times})' if times > 1 else ''}: {_WHAT[name]}")
                measured += LEGS[name](ground)
        ground.reset()


def _show(
    measured: "Sequence[Figure]", before: Mapping[str, float], machine: Mapping[str, Any], *, as_json: bool
) -> None:
    from brewctl.lab.bench import figures, table

    if as_json:
        output.emit_json(figures.to_json(measured, machine))
    else:
        output.emit("\n".join(table.lines(figures.rows(measured), before, machine)))


def _judge(measured: "Sequence[Figure]") -> None:
    """Raise BrewError where a target was missed, or a figure could not be measured."""
    from brewctl.errors import BrewError
    from brewctl.lab.bench import figures

    rows = figures.rows(measured)
    missing = [row.name for row in rows if row.missing]
    if missed := [row.name for row in rows if row.reached is False]:
        unmeasured = f"; not measured: {'; '.join(missing)}" if missing else ""
        raise BrewError(f"missed: {'; '.join(missed)}{unmeasured}", hint="is the machine idle? see docs/performance.md")
    if missing:
        raise BrewError(f"not measured: {'; '.join(missing)}", hint="is the machine idle? see docs/performance.md")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl bench --leg create --leg publish --json > before.json")(bench)
