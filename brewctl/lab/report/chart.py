"""An act as one picture over one time axis.

    ┌ kill -9 inventory-1 ┐          faults, in lanes; their bands fall through everything below
    │ orders, reservations, notifications
    │ unpublished outbox rows        on a scale of their own: few, where the others are many
    │ owner of each partition        one row a partition, for each group
    └ 0        50       100 s

Lines differ in dashes, owners in written names: nothing is told by colour alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from brewctl.lab.history import Act, Fault
from brewctl.lab.report.curves import curves
from brewctl.lab.report.geometry import Scale, lanes, shorten, text_width, tick_step, ticks
from brewctl.lab.report.markup import Markup, join, leaf, number, tag
from brewctl.lab.report.panels import TEXT, Frame, Panel, at, stack
from brewctl.lab.report.strips import hatches, strips

WIDE, NARROW = 960.0, 380.0  # pixels: for a screen or paper, for a phone

_LANE = 20.0
_MOST_LANES = 8  # faults that would need more keep their bands, and lose their labels
_AXIS = 24.0
_HEADING = 44.0
_THINNEST = 2.0  # what an instant takes


@dataclass(frozen=True)
class _Placed:
    """A fault, in pixels."""

    fault: Fault
    start: float
    end: float
    label: str
    label_at: float
    lane: int = 0

    @property
    def top(self) -> float:
        """Where its bar is, below its label."""
        return self.lane * _LANE + 15.0 if self.lane < _MOST_LANES else _MOST_LANES * _LANE


def picture(act: Act, *, width: float, key: str) -> Markup:
    """Draw an act for a page that has chart.css. `key` makes its ids unique there."""
    drawn = _draw(act, width, key)
    return _svg(act, width, drawn.height, drawn.content)


def poster(act: Act, style: str) -> Markup:
    """Draw an act as a file of its own, which brings chart.css with it as `style`."""
    drawn = _draw(act, WIDE, "act")
    height = drawn.height + _HEADING
    heading = tag("text", f"{act.title}: {act.verdict}", class_="heading", x=16, y=30)
    paper = leaf("rect", class_="paper", width=WIDE, height=height, rx=8)
    return _svg(act, WIDE, height, tag("style", Markup(style)), paper, heading, at(0, _HEADING, drawn.content))


def _svg(act: Act, width: float, height: float, *content: Markup) -> Markup:
    return tag(
        "svg",
        *content,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=f"{act.title}: counters, faults and owners of partitions over {act.duration_s:.0f} seconds",
    )


def _draw(act: Act, width: float, key: str) -> Panel:
    left, right, tick_every = (52.0, 10.0, 80.0) if width == WIDE else (42.0, 4.0, 60.0)
    frame = Frame(Scale((0.0, act.duration_s or 1.0), (left, width - right)), key)
    faults = _place(act.faults, frame)
    labels = _labels(faults)
    panels = [labels, curves(act.samples, frame), *strips(act, frame)]
    bottom = sum(panel.height for panel in panels)
    behind = [
        hatches(key),
        *_axis(frame, labels.height, bottom, tick_every),
        *(_band(fault, bottom) for fault in faults),
    ]
    return Panel(bottom + _AXIS, join([*behind, stack(panels)]))


def _place(faults: Sequence[Fault], frame: Frame) -> list[_Placed]:
    """Give each fault its lane: neither labels nor bars touch."""
    placed = []
    for fault in sorted(faults, key=lambda fault: (fault.start_s, fault.end_s, fault.label)):
        label = shorten(fault.label, frame.right - frame.left, TEXT)
        start, end = frame.time(fault.start_s), frame.time(fault.end_s)
        label_at = max(frame.left, min(start, frame.right - text_width(label, TEXT)))
        placed.append(_Placed(fault, start, max(end, start + _THINNEST), label, label_at))
    spans = [
        (min(each.start, each.label_at), max(each.end, each.label_at + text_width(each.label, TEXT))) for each in placed
    ]
    return [replace(each, lane=lane) for each, lane in zip(placed, lanes(spans, gap=10), strict=True)]


def _labels(faults: Sequence[_Placed]) -> Panel:
    shown = [fault for fault in faults if fault.lane < _MOST_LANES]
    height = _LANE * (1 + max((fault.lane for fault in shown), default=-1))
    texts = (tag("text", fault.label, class_="fault", x=fault.label_at, y=fault.top - 5) for fault in shown)
    return Panel(height + 6, join(texts))


def _band(placed: _Placed, bottom: float) -> Markup:
    fault, width = placed.fault, placed.end - placed.start
    return tag(
        "g",
        tag("title", f"{fault.label}: {_told(fault)}"),
        leaf("rect", class_="band", x=placed.start, y=placed.top, width=width, height=bottom - placed.top),
        leaf("rect", class_="bar", x=placed.start, y=placed.top, width=width, height=3.0),
    )


def _told(fault: Fault) -> str:
    if fault.end_s == fault.start_s:
        return f"{fault.start_s:.1f} s"
    return f"{fault.start_s:.1f} s to " + ("the end" if math.isinf(fault.end_s) else f"{fault.end_s:.1f} s")


def _axis(frame: Frame, top: float, bottom: float, every: float) -> Iterator[Markup]:
    """Draw the seconds: a line through all panels at each tick, named below them."""
    duration_s = frame.time.values[1]
    marks = ticks(duration_s, tick_step(duration_s, at_most=int(frame.time.length // every)))
    for mark in marks:
        x = frame.time(mark)
        yield leaf("path", class_="grid", d=f"M{number(x)} {number(top)}V{number(bottom)}")
        name = f"{mark:g} s" if mark == marks[-1] else f"{mark:g}"
        yield tag("text", name, class_="tick", x=x, y=bottom + 15, text_anchor="middle")
