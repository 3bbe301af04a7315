"""Draw the parts of the screen from a snapshot."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from brewctl.lab import look
from brewctl.lab.top.rates import Rates
from brewctl.lab.top.snapshot import Counters, GroupPartition, Process, ShownGroup, Snapshot

_LABEL, _VALUE, _RATE = 14, 12, 11
_CELL = 10
_SHORTEST = 8  # of a sparkline


def counters(snapshot: Snapshot, rates: Rates, width: int, *, most: int) -> Text:
    """Draw a line for each counter: value, rate, and a sparkline of the rate. `most`: downstreams at most."""
    now = snapshot.counters
    done = list(now.effects) if now else list(snapshot.downstreams)
    names = ["orders", "unpublished", "published", *_first(done, most)]
    rows = [_counter(name, now, rates, width) for name in names]
    if more := len(done) - len(_first(done, most)):
        rows.append(_more(more, "downstreams"))
    if "postgres" in snapshot.troubles:
        rows.append(_trouble(snapshot.troubles["postgres"]))
    else:
        rows.append(_dead_letters(snapshot.dead_letters, rates, width))
    return _joined(rows, width)


def _first(names: list[str], most: int) -> list[str]:
    """Return the first `most` names; one less if there are more, for a line with the number of the others."""
    return names if len(names) <= most else names[: most - 1]


def _more(number: int, what: str) -> Text:
    return Text(f"… {number} more {what}: make the window higher", style="dim")


def _fitted(name: str) -> str:
    """Shorten a name to a label: beginning and end stay, where names differ."""
    most = _LABEL - 1
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _trouble(words: str) -> Text:
    return Text(f"✗ out of date: {words}", style="bold red")


def _counter(name: str, now: Counters | None, rates: Rates, width: int) -> Text:
    if now is None:
        return _line(name, "-", "", (), width)
    if name == "unpublished":  # always exact, as few rows wait
        oldest = "" if now.oldest_s is None else f"{look.ago(now.oldest_s)} old"
        warning = f"{now.set_aside:,} set aside: see `brewctl outbox list`" if now.set_aside else ""
        return _line(name, f"{now.unpublished:,}", oldest, rates.history(name), width, warning)
    value = now.growing()[name]
    if value is None:
        return _line(_fitted(name), "-", "", (), width, "can't be counted: see `brewctl doctor`")
    about = "~" if name in now.estimated else ""
    return _line(_fitted(name), f"{about}{value:,}", f"{rates.now(name):,.0f}/s", rates.history(name), width)


def _dead_letters(count: int | None, rates: Rates, width: int) -> Text:
    name = "dead letters"
    if count is None:
        return _line(name, "-", "", (), width)
    warning = "see `brewctl dlq list`" if count else ""
    return _line(name, f"{count:,}", f"{rates.now(name):,.0f}/s", rates.history(name), width, warning)


def _line(name: str, value: str, beside: str, history: Sequence[float], width: int, warning: str = "") -> Text:
    line = Text(f"{name:<{_LABEL}}{value:>{_VALUE}}", style="bold")
    line.append(f"{beside:>{_RATE}}  ", style="not bold")
    line.append(f"{warning}  " if warning else "", style="not bold red")
    if history and (room := width - len(line)) >= _SHORTEST:
        line.append(look.sparkline(history, room), style="not bold cyan")
    return line


def partitions(snapshot: Snapshot, colours: Mapping[str, str], width: int, *, most: int) -> Text:
    """Draw each group's partitions: owner, lag, and since when it owns them. `most`: groups at most."""
    numbers = sorted({place.partition for group in snapshot.groups for place in group.places})
    shown = numbers[: max(1, (width - _LABEL) // (_CELL + 1))]
    label = "partition" if shown == numbers else f"first {len(shown)} of {len(numbers)}"
    head = Text(f"{label:<{_LABEL}}" + " ".join(f"{number:<{_CELL}}" for number in shown), style="underline")
    if "kafka" in snapshot.troubles:
        head = _trouble(snapshot.troubles["kafka"])
    states = {process.name: process.state for process in snapshot.processes}
    groups = snapshot.groups if len(snapshot.groups) <= most else snapshot.groups[: most - 1]
    rows = [_group(group, shown, colours, states) for group in groups]
    if more := len(snapshot.groups) - len(groups):
        rows.append(_more(more, "groups"))
    return _joined([head, *rows], width)


def _group(group: ShownGroup, shown: list[int], colours: Mapping[str, str], states: Mapping[str, str]) -> Text:
    steady = group.state in {"Stable", "Empty", "Dead"}
    name = _fitted(group.name) if steady else f"{group.name[: _LABEL - 1]}…"
    line = Text(f"{name:<{_LABEL}}", style="bold" if steady else "bold yellow")
    places = {place.partition: place for place in group.places}
    for number in shown:
        if place := places.get(number):
            line.append_text(_cell(place, colours.get(place.owner, "white"), states.get(place.owner, "runs")))
        line.append(" ")
    return line


def _cell(place: GroupPartition, colour: str, state: str) -> Text:
    if not place.owner:
        return Text(f"{f'-  +{place.lag}':<{_CELL}}", style="dim" if not place.lag else "yellow")
    # Without colours, the owner's number tells it from its peers, and a sign shows that it does not work.
    number = place.owner.rpartition("-")[2][-3:]
    works = state in {"runs", "starts"}
    said = f"{number}{' ' if works else look.state(state).plain[0]}+{_few(place.lag)}"
    moved = "" if place.moved_s is None else f" {_briefly(place.moved_s)}"
    if len(said + moved) <= _CELL:
        said += moved
    margin = " " if len(said) < _CELL else ""
    return Text(f"{margin}{said}".ljust(_CELL), style=f"black on {colour}" if works else "black on red")


def _few(number: int) -> str:
    """Format a lag in four characters."""
    for unit, size in (("", 1), ("k", 1_000), ("M", 1_000_000)):
        if number < 1_000 * size or unit == "M":
            return f"{number / size:.0f}{unit}"
    raise AssertionError(number)


def _briefly(seconds: float) -> str:
    """Format a time in three characters: 7s, 12s, 3m, 5h."""
    if seconds < 100:  # noqa: PLR2004 - two digits
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 100 * 60 else f"{seconds / 3600:.0f}h"


def process(shown: Process, colour: str, widths: Sequence[int]) -> tuple[Text, ...]:
    """Return a process's cells in the table: name, pid, state, what it does."""
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
    """Draw the last `height` lines of the event log."""
    return _joined([Text(line) for line in lines[-max(1, height) :]], width)


def _does(shown: Process) -> Iterator[str]:
    if row := shown.row:
        if not shown.name.startswith(row.role.removesuffix("s")):
            yield row.role
        if row.address:
            yield f"port {row.address.rpartition(':')[2]}"
        if row.address or shown.role == "publisher":
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
        # The sandbox's brokers are all on this machine: the port is enough.
        yield f"port {shown.place.rpartition(':')[2]}" if shown.ours and shown.role == "kafka" else shown.place


def _joined(lines: Sequence[Text], width: int) -> Text:
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)
