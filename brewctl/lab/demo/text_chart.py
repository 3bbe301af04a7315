"""Draw the counters over time with characters. Orders that wait to be reserved show as a gap.

    ░ orders 200   █ reservations 200   • notifications 200
200 ┤         •••••••••••••••••••••••••••••••••██████
    ┤       ••░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░███████
100 ┤    ████████████████████████████████████████████
    ┤  ██████████████████████████████████████████████
  0 └────┴▲───────────┴─────────────┴─────────▲──────
         5 s          10 s          15 s
          ▲ kill -9 inventory-1, 5.5 s
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from rich.text import Text

from brewctl.lab.record.history import Act, FlowSample
from brewctl.lab.report.geometry import Scale, lanes, tick_step, ticks

HEIGHT = 13  # of the chart in lines, at most
_ROWS = 8
_LEFT = 7  # columns before the plot
_WAITS, _RESERVED, _NOTIFIED, _MARK = "░", "█", "•", "▲"
_STYLES = {_WAITS: "yellow", _RESERVED: "cyan", _NOTIFIED: "bold magenta", _MARK: "bold red"}


@dataclass(frozen=True)
class _Label:
    """A label of a moment on the axis; positions are columns."""

    at: int
    text: str
    start: int


def draw(act: Act, width: int) -> Text:
    """Draw the chart in `width` columns, from the first order on. Empty if there was no order."""
    samples = act.samples[sum(1 for _ in takewhile(lambda sample: not sample.orders, act.samples)) :]
    if len(samples) < 2:  # noqa: PLR2004 - no time has passed
        return Text()
    columns = width - _LEFT - 1
    time = Scale((samples[0].at_s, samples[-1].at_s), (0.0, columns - 1.0))
    labels = _labels(act, time, columns)
    lines = [_legend(samples[-1]), *_plot(samples, time), *_axis(labels, time), *_said(labels)]
    drawn = Text("\n").join(Text(line[:width]) for line in lines)
    for sign, style in _STYLES.items():
        drawn.highlight_regex(f"{sign}+", style)
    return drawn


def _legend(last: FlowSample) -> str:
    counters = ((_WAITS, "orders"), (_RESERVED, "reservations"), (_NOTIFIED, "notifications"))
    return " " * _LEFT + "   ".join(f"{sign} {name} {last.value(name)}" for sign, name in counters)


def _plot(samples: Sequence[FlowSample], time: Scale) -> Iterator[str]:
    highest = samples[-1].orders
    row = Scale((0.0, highest), (0.0, float(_ROWS)))
    seen = [_seen(samples, time, column) for column in range(int(time.length) + 1)]
    for number in range(_ROWS, 0, -1):
        name = {_ROWS: f"{highest} ┤", _ROWS // 2: f"{highest / 2:g} ┤"}.get(number, "┤")
        yield f"{name:>{_LEFT}}" + "".join(_cell(sample, row, number) for sample in seen)


def _seen(samples: Sequence[FlowSample], time: Scale, column: int) -> FlowSample:
    """Return the last sample within a column, or else the one before."""
    return samples[max(0, bisect_left(samples, column + 1.0, key=lambda sample: time(sample.at_s)) - 1)]


def _cell(sample: FlowSample, row: Scale, number: int) -> str:
    """Return the character of a sample in a row. Notified orders show only where they differ from the reserved."""
    counters = ("orders", "reservations", "notifications")
    orders, reserved, notified = (round(row(sample.value(name))) for name in counters)
    if number == notified != reserved:
        return _NOTIFIED
    if number <= reserved:
        return _RESERVED
    return _WAITS if number <= orders else " "


def _labels(act: Act, time: Scale, columns: int) -> list[_Label]:
    moments = [(fault.start_s, fault.label) for fault in act.faults] + [(mark.at_s, mark.label) for mark in act.marks]
    labels = []
    for at_s, said in sorted(moments):
        at, text = round(time(at_s)), f"{_MARK} {said}, {at_s:.1f} s"
        labels.append(_Label(at, text, max(0, min(at, columns - len(text)))))
    return labels


def _axis(labels: Sequence[_Label], time: Scale) -> Iterator[str]:
    """Yield the axis, and the line with the names of its ticks."""
    first_s, last_s = time.values
    marks = [mark for mark in ticks(last_s, tick_step(last_s - first_s, at_most=6)) if mark >= first_s]
    line = ["─"] * (int(time.length) + 1)
    names = [" "] * len(line)
    for mark in marks:
        column = round(time(mark))
        line[column] = "┴"
        name = f"{mark:g} s"
        start = min(column, len(line) - len(name))
        names[start : start + len(name)] = name
    for label in labels:
        line[label.at] = _MARK
    yield f"{'0 └':>{_LEFT}}{''.join(line)}"
    yield (" " * _LEFT + "".join(names)).rstrip()


def _said(labels: Sequence[_Label]) -> Iterator[str]:
    rows = lanes([(label.start, label.start + len(label.text)) for label in labels], gap=2)
    for row in range(max(rows, default=-1) + 1):
        line = ""
        for label, its in zip(labels, rows, strict=True):
            if its == row:
                line = f"{line:<{label.start}}{label.text}"
        yield " " * _LEFT + line
