"""`brewctl bench`: every leg of the flow, beside what is possible on this machine at this moment."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.lab.bench.figures import Figure

_WHAT = {
    "create": "Create at 1, 8 and 64 in flight",
    "publish": "20,000 rows that wait for a publisher",
    "consume": "20,000 records that wait for one node, in each form, and for two",
    "latency": "from an order's commit to its reservation's, at 100 a second",
    "memory": "each role over 100,000 orders",
    "startup": "the command line",
    "growth": "Create and the publisher with a million orders in the tables; takes minutes",
}


def bench(
    leg: Annotated[
        list[str] | None,
        typer.Option(help="Which; may be given again. See --list.", metavar="NAME", show_default="all but growth"),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Compare with an earlier run's --json.", metavar="FILE.json")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Describe the legs and do nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox running afterwards.")] = False,
    as_json: options.AsJson = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Measure how fast each leg of the flow is, beside its floor.

    On a sandbox where no servers are configured. Empties tables and topics.

    Exit 1 where a target is missed, as it may be on a machine that does something else too.

    What each floor is, and what limits us: docs/performance.md.
    """
    if list_:
        for name, what in _WHAT.items():
            output.emit(f"{name:<9} {what}")
        return
    from brewctl import config
    from brewctl.cli.sandbox import emptied
    from brewctl.errors import BrewError
    from brewctl.sandbox import parts

    chosen = _chosen(leg)
    parts.require()  # the floors are made of them, whoever's the servers are
    from brewctl.lab.bench import figures

    before = figures.earlier(against) if against else {}
    measured: list[Figure] = []
    try:
        places = {"database_url": database_url, "brokers": brokers, "topic": topic}
        with emptied("bench", **places, keep=keep, yes=yes) as settings:
            _measure(settings, chosen, config.home() / "logs" / "bench", measured)
    finally:
        # What was measured is told, whatever ended it.
        if as_json and measured:
            output.emit_json(figures.to_json(measured))
        elif measured:
            _table(measured, before)
    missing = [figure.name for figure in measured if figure.value is None]
    if missed := [figure.name for figure in measured if figure.reached is False]:
        unmeasured = f"; not measured: {'; '.join(missing)}" if missing else ""
        raise BrewError(f"missed: {'; '.join(missed)}{unmeasured}", hint="is the machine idle? see docs/performance.md")
    if missing:
        raise BrewError(f"not measured: {'; '.join(missing)}", hint="is the machine idle? see docs/performance.md")


def _chosen(names: Sequence[str] | None) -> list[str]:
    from brewctl.errors import UsageError

    for name in names or ():
        if name not in _WHAT:
            raise UsageError(f"no leg {name[:80]!r}", hint="see `brewctl bench --list`")
    return [name for name in _WHAT if name in names] if names else [name for name in _WHAT if name != "growth"]


def _measure(settings: "Settings", chosen: Sequence[str], logs: Path, measured: "list[Figure]") -> None:
    from brewctl import log
    from brewctl.delivery import database
    from brewctl.lab.bench import LEGS
    from brewctl.lab.bench.ground import Ground

    log.configure(node="bench")
    logging.getLogger("brewctl").setLevel(logging.ERROR)  # of our own inbox, which is a floor here
    with database.connect(settings) as connection:
        ground = Ground(settings, connection, logs=logs, tell=lambda text: output.note(f"  {text}"))
        for name in chosen:
            output.note(f"{name}: {_WHAT[name]}")
            measured += LEGS[name](ground)
        ground.reset()


def _table(figures: "Sequence[Figure]", before: Mapping[str, float]) -> None:
    head = f"{'figure':<33}{'measured':>11}{'floor':>11}{'ratio':>6}{'target':>7}"
    output.emit(f"{head}{'before':>11}" if before else head)
    for figure in figures:
        floor = _amount(figure.floor, figure.unit)
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        mark = {True: "ok", False: "miss", None: ""}[figure.reached]
        earlier = before.get(figure.name)
        change = f"{(figure.value / earlier - 1) * 100:+5.0f}%" if earlier and figure.value is not None else ""
        row = f"{figure.name:<33}{_amount(figure.value, figure.unit):>11}{floor:>11}{ratio:>6}{figure.target:>7}"
        output.emit(f"{row} {mark:<4}{change}".rstrip())


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.2f} {unit}"  # noqa: PLR2004 - three digits are enough


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl bench --leg create --leg publish --json > before.json")(bench)
