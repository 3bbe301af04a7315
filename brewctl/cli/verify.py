"""`brewctl verify`: check every order in PostgreSQL and Kafka."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output
from brewctl.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from brewctl.verify import Facts, Verification

_WIDTH = 80
# A snapshot that was held longer is reported, as it kept VACUUM from removing rows.
_LONG_SNAPSHOT_S = 60


def verify(
    wait: Annotated[
        float,
        typer.Option(help="First wait until nothing is on its way, this long at most.", metavar="SECONDS", min=0),
    ] = 0,
    late: Annotated[
        float,
        typer.Option(
            help="Older events that are not through are faults; younger ones are on their way.",
            metavar="SECONDS",
            min=0,
        ),
    ] = 60,
    statement_timeout: Annotated[
        float,
        typer.Option(help="The longest that one statement, over whole tables, may take.", metavar="SECONDS", min=1),
    ] = 900,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing if no promise is broken.")] = False,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Check every order's whole way in PostgreSQL and Kafka.

    Exit 0 where no promise is broken, 1 where one is, 3 where a server can't be reached.

    Gives no false alarm while everything runs. Reads the whole topic, and changes nothing.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    from dataclasses import asdict

    from brewctl import verify as chain

    if wait and (moving := chain.settle(settings, timeout_s=wait)):
        output.note(f"still on its way after {wait:g} s: {moving}")
    with _progress(shown=not quiet) as progress:
        found = chain.verify(settings, late_s=late, statement_s=statement_timeout, progress=progress)
    if quiet and found.ok:
        return
    if as_json:
        output.emit_json({"ok": found.ok, "verdict": found.verdict, **asdict(found)})
    else:
        _show(found)
    if not found.ok:
        raise typer.Exit(ExitCode.FAILED)


@contextlib.contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar in a terminal, nothing in a pipe."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("records", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(found: "Verification") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    with console.capture() as drawn:
        console.print(_table(found))
    output.emit("\n".join(line.rstrip() for line in drawn.get().splitlines()))
    for name, text in _facts(found.facts):
        output.emit(f"  {name:<9}{text}")
    for check in found.checks:
        if check.violations:
            output.emit(f"\n{check.name}: {check.violations} of {check.examined}")
            for offender in check.offenders:
                output.emit(f"  {offender}")
            if (more := check.violations - len(check.offenders)) > 0:
                output.emit(f"  and {more} more")
    output.emit(f"\n{found.verdict}")


def _table(found: "Verification") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("what must hold")
    table.add_column("examined", justify="right")
    table.add_column("broken", justify="right")
    for check in found.checks:
        style = "bold red" if check.violations else None
        table.add_row(check.name, check.claim, str(check.examined), str(check.violations), style=style)
    return table


def _of_operators(facts: "Facts") -> Iterator[tuple[str, str]]:
    """Yield the facts about records of an older version, and about republished rows."""
    if facts.older_headers:
        yield "", f"{facts.older_headers} published by the version before, without event id and number"
    if facts.republished:
        rows = "1 row was" if facts.republished == 1 else f"{facts.republished} rows were"
        yield "", f"{rows} published again by `outbox republish`, maybe behind later ones of the same key"


def _dropped(facts: "Facts") -> Iterator[tuple[str, str]]:
    """Yield the fact about rows that retention has dropped."""
    if facts.watermark:
        yield "watermark", f" {facts.watermark}: smaller ids were dropped, of orders up to {facts.dropped_until}"


def _facts(facts: "Facts") -> Iterator[tuple[str, str]]:
    yield "orders", str(facts.orders)
    yield "outbox", f"{facts.outbox_rows} rows: {facts.published} published, {facts.set_aside} set aside"
    if facts.other_topics:
        yield "", f"{facts.other_topics} of them for other topics, which were not read"
    yield from _dropped(facts)
    yield "topic", f"{facts.records} records: {facts.events} events, {facts.repeats} repeats of them"
    yield "", f"{facts.other_types} of other types, {facts.unreadable} unreadable"
    yield from _of_operators(facts)
    if facts.repeats:
        yield (
            "repeats",
            f"{facts.repeats_same_node} sent again by the same node: its acknowledgement or commit was lost",
        )
        yield "", f"{facts.repeats_other_node} by another node: the first died, or stood still, before its commit"
        yield "", f"{facts.repeats_redriven} redriven from the dead letters"
    if facts.moved_keys:
        yield "moved", f"{facts.moved_keys} keys in two partitions, each right at its time: partitions were added"
    if facts.removed:
        yield "removed", f"{facts.removed} offsets from the topic's beginning, by its retention"
        yield "", f"{facts.removed_events} published rows are known to have been there: a group processed them"
    for group, fates in facts.dead_letters.items():
        yield "letters", f"{group}: {', '.join(f'{count} {fate}' for fate, count in fates.items())}"
    if facts.dead_letters_repeated:
        yield "", f"{facts.dead_letters_repeated} of them repeats"
    if facts.parked:
        yield "parked events", f"{facts.parked}: see `brewctl dlq list`"
    if facts.ledger:
        yield "ledger", f"{facts.ledger} effects, each as often as it was done"
    yield "on way", facts.on_the_way or "nothing"
    if facts.snapshot_s > _LONG_SNAPSHOT_S:
        yield "snapshot", f"held for {facts.snapshot_s:.0f} s: vacuum could not remove what was replaced meanwhile"
    yield "lag", ", ".join(f"{group} {sum(partitions.values())}" for group, partitions in facts.lag.items())


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl verify --wait 30")(verify)
