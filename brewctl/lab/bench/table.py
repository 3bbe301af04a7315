"""The table of figures, 80 characters wide, below a description of the machine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brewctl.lab.bench.figures import BenchRow

_WIDTH = 80
NAME_COLUMNS = 33
_MANY_DIGITS = 100
_MARKS = {True: "ok", False: "miss", None: ""}
_INDENT = 4


def lines(rows: Sequence[BenchRow], before: Mapping[str, float], machine: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the machine, then a line for each figure; after several runs, its spread in a second line.

    `before`: the medians of an earlier bench, by name.
    """
    yield from described(machine)
    yield ""
    head = f"{'figure':<{NAME_COLUMNS}}{'measured':>11}{'floor':>11}{'ratio':>6}{'target':>7}"
    yield f"{head}{'before':>11}" if before else head
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        earlier = before.get(row.name)
        change = f"{(row.value / earlier - 1) * 100:+5.0f}%" if earlier and row.value is not None else ""
        told = f"{row.name:<{NAME_COLUMNS}}{amount(row.value, row.unit):>11}{amount(row.floor, row.unit):>11}{ratio:>6}"
        yield f"{told}{row.target:>7} {_MARKS[row.reached]:<4}{change}".rstrip()
        if len(row.runs) > 1 and (spread := _spread(row)):
            yield spread


def described(machine: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about the machine, its speed, and other work on it."""
    where = f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    cpu = str(machine.get("cpu", ""))
    room = _WIDTH - len(where) - len("machine   , ")
    yield f"machine   {where}{f', {cpu}' if cpu and len(cpu) <= room else ''}"
    if cpu and len(cpu) > room:
        yield f"cpu       {cpu}"[:_WIDTH]
    if machine.get("brokers"):
        brokers = f"{machine['brokers']} broker{'s' if machine['brokers'] > 1 else ''}"
        yield f"kafka     {brokers}; nodes use {machine['kafka_client']} where a figure names no client"
    loop, fsync = amount(machine.get("loop_ms"), "ms"), amount(machine.get("fsync_ms"), "ms")
    yield f"speed     Python loop {loop}, 8 kB and an fsync {fsync}; other work: {_share(machine.get('others_busy'))}"


def amount(value: float | None, unit: str) -> str:
    """Format a value with its unit: from 100 on without decimals."""
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= _MANY_DIGITS else f"{value:,.2f} {unit}"


def _spread(row: BenchRow) -> str:
    """Format the lowest and highest value and ratio of the runs; "" if no run has a value."""
    if row.spread is None:
        return ""
    values, ratios = row.spread, row.ratio_spread
    told = f"{'':<{_INDENT}}{len(row.runs)} runs: {_bare(values[0])} to {amount(values[1], row.unit)}"
    return f"{told}{f', ratio {ratios[0]:.2f} to {ratios[1]:.2f}' if ratios else ''}"


def _bare(value: float) -> str:
    return amount(value, "").rstrip()


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share * 100:.0f} %"
