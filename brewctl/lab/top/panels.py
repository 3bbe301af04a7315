"""What the parts of the screen show, as text: from a snapshot alone."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from brewctl.lab import look
from brewctl.lab.top.rates import GROWING, Rates
from brewctl.lab.top.snapshot import Counters, Group, Place, Process, Snapshot

_ROWS = ("orders", "unpublished", "published", "reservations", "notifications")
_LABEL, _VALUE, _RATE = 14, 12, 11
_CELL = 10


def counters(snapshot: Snapshot, rates: Rates, width: int) -> Text:
    """Draw a line for each counter: its value, its rate, and how that was."""
    lines = [_counter(name, snapshot.counters, rates, width) for name in _ROWS]
    letters = "-" if snapshot.dead_letters is None else f"{snapshot.dead_letters:,}"
    lines.append(Text(f"{'dead letters':<{_LABEL}}{letters:>{_VALUE}}", style="bold"))
    if "postgres" in snapshot.troubles:
        lines[-1] = _trouble(snapshot.troubles["postgres"])
    elif snapshot.dead_letters:
        lines[-1].append("  see `brewctl dlq list`", style="not bold red")
    return _joined(lines, width)


def _trouble(words: str) -> Text:
    return Text(f"✗ out of date: {words}", style="bold red")


def _counter(name: str, now: Counters | None, rates: Rates, width: int) -> Text:
    if now is None:
        return Text(f"{name:<{_LABEL}}{'-':>{_VALUE}}")
    # Few rows wait, and they are counted whatever the tables' size.
    about = "~" if now.estimated and name != "unpublished" else ""
    line = Text(f"{name:<{_LABEL}}{about + format(getattr(now, name), ','):>{_VALUE}}", style="bold")
    beside = f"{rates.now(name):,.0f}/s" if name in GROWING else _oldest(now)
    line.append(f"{beside:>{_RATE}}  ", style="not bold")
    room = width - len(line)
    if name == "unpublished" and now.set_aside:
        line.append(f"{now.set_aside:,} set aside: see `brewctl outbox list`"[:room], style="not bold red")
    else:
        line.append(look.sparkline(rates.history(name), room), style="not bold cyan")
    return line


def _oldest(now: Counters) -> str:
    return "" if now.oldest_s is None else f"{look.ago(now.oldest_s)} old"


def partitions(snapshot: Snapshot, colours: Mapping[str, str], width: int) -> Text:
    """Draw the map of each group's partitions: who owns each, how far behind it is, and since when."""
    numbers = sorted({place.partition for group in snapshot.groups for place in group.places})
    shown = numbers[: max(1, (width - _LABEL) // (_CELL + 1))]
    label = "partition" if shown == numbers else f"first {len(shown)} of {len(numbers)}"
    head = Text(f"{label:<{_LABEL}}" + " ".join(f"{number:<{_CELL}}" for number in shown), style="underline")
    if "kafka" in snapshot.troubles:
        head = _trouble(snapshot.troubles["kafka"])
    states = {process.name: process.state for process in snapshot.processes}
    return _joined([head, *(_group(group, shown, colours, states) for group in snapshot.groups)], width)


def _group(group: Group, shown: list[int], colours: Mapping[str, str], states: Mapping[str, str]) -> Text:
    steady = group.state in {"Stable", "Empty", "Dead"}
    name = group.name if steady else f"{group.name[: _LABEL - 1]}…"
    line = Text(f"{name:<{_LABEL}}", style="bold" if steady else "bold yellow")
    places = {place.partition: place for place in group.places}
    for number in shown:
        if place := places.get(number):
            line.append_text(_cell(place, colours.get(place.owner, "white"), states.get(place.owner, "runs")))
        line.append(" ")
    return line


def _cell(place: Place, colour: str, state: str) -> Text:
    if not place.owner:
        return Text(f"{f'-  +{place.lag}':<{_CELL}}", style="dim" if not place.lag else "yellow")
    # The number of an owner tells it from its peers where colours don't.
    number = place.owner.rpartition("-")[2][-3:]
    works = state in {"runs", "starts"}
    said = f" {number if works else look.state(state).plain[0] + number} +{_few(place.lag)}"
    moved = "" if place.moved_s is None else f" {look.ago(place.moved_s).replace(' ', '')}"
    if len(said + moved) <= _CELL:
        said += moved
    return Text(f"{said:<{_CELL}}", style=f"black on {colour}" if works else "black on red")


def _few(number: int) -> str:
    """Write a lag in four characters."""
    for unit, size in (("", 1), ("k", 1_000), ("M", 1_000_000)):
        if number < 1_000 * size or unit == "M":
            return f"{number / size:.0f}{unit}"
    raise AssertionError(number)


def process(shown: Process, colour: str, widths: Sequence[int]) -> tuple[Text, ...]:
    """Write the cells of a process: name, pid, state, what it does."""
    cells = (
        Text(shown.name, style=colour),
        Text(f"{shown.pid or '-':>7}"),
        look.state(shown.state),
        Text(", ".join(_does(shown))),
    )
    for cell, width in zip(cells, widths, strict=True):
        cell.truncate(width, overflow="ellipsis")
    return cells


def events(lines: Sequence[str], height: int, width: int) -> Text:
    """Write the last lines that there is room for."""
    return _joined([Text(line) for line in lines[-max(1, height) :]], width)


def _does(shown: Process) -> Iterator[str]:
    if row := shown.row:
        if row.address:
            yield f"port {row.address.rpartition(':')[2]}"
            yield f"{row.effects:,} published"
        else:
            yield f"{row.processed:,} processed"
            yield f"{row.skipped:,} skipped"
        if row.dead:
            yield f"{row.dead:,} dead"
        yield f"seen {look.ago(row.silent_s)} ago"
    elif shown.role == "kafka" and shown.holds:
        leads = " ".join(map(str, shown.leads)) or "nothing"
        yield f"leads {leads}"
        yield f"in sync {shown.in_sync}/{shown.holds}"
    if shown.place:
        yield shown.place


def _joined(lines: Sequence[Text], width: int) -> Text:
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)
