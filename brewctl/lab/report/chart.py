"""Draw an act as one picture with one time axis.

    ┌ kill -9 inventory-1 ┐          faults and marks in lanes, with bands and lines through all panels below
    │ orders, effects of each downstream
    │ unpublished outbox rows        with a scale of their own, as they are few
    │ owner of each partition        a row for each partition of each group
    └ 0        50       100 s

Lines differ in dashes, and owners' names are written: no information is in the colour alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from brewctl.lab.record.history import Act
from brewctl.lab.report.curves import curves
from brewctl.lab.report.geometry import Scale, lanes, shorten, text_width, tick_step, ticks
from brewctl.lab.report.layout import TEXT, Frame, Panel, at, stack
from brewctl.lab.report.markup import Markup, join, leaf, number, tag
from brewctl.lab.report.strips import hatches, strips

WIDE, NARROW = 960.0, 380.0  # pixels: for a screen or paper, for a phone

_LANE = 20.0
_MOST_LANES = 8  # moments in further lanes have bands, but no labels
_AXIS = 24.0
_HEADING = 44.0
_THINNEST = 2.0  # the width of an instant


@dataclass(frozen=True)
class _Placed:
    """A fault or a mark, in pixels."""

    style: str  # its class
    told: str
    start: float
    end: float
    label: str
    label_at: float
    lane: int = 0

    @property
    def top(self) -> float:
        """The y of its bar, below its label."""
        return self.lane * _LANE + 15.0 if self.lane < _MOST_LANES else _MOST_LANES * _LANE


def picture(act: Act, *, width: float, key: str) -> Markup:
    """Draw an act for a page with chart.css. `key` makes its ids unique on the page."""
    drawn = _draw(act, width, key)
    return _svg(act, width, drawn.height, drawn.content)


def poster(act: Act, style: str) -> Markup:
    """Draw an act as an SVG file, with the style sheet `style`."""
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
    moments = _place(act, frame)
    labels = _labels(moments)
    panels = [labels, curves(act.samples, frame), *strips(act, frame)]
    bottom = sum(panel.height for panel in panels)
    behind = [
        hatches(key),
        *_axis(frame, labels.height, bottom, tick_every),
        *(_band(moment, bottom) for moment in moments),
    ]
    return Panel(bottom + _AXIS, join([*behind, stack(panels)]))


def _place(act: Act, frame: Frame) -> list[_Placed]:
    """Place faults and marks in lanes so that neither labels nor bars touch."""
    moments = [("fault", fault.start_s, fault.end_s, fault.label) for fault in act.faults]
    moments += [("mark", mark.at_s, mark.at_s, mark.label) for mark in act.marks]
    placed = []
    for style, start_s, end_s, said in sorted(moments, key=lambda moment: moment[1:]):
        label = shorten(said, frame.right - frame.left, TEXT)
        start, end = frame.time(start_s), frame.time(end_s)
        label_at = max(frame.left, min(start, frame.right - text_width(label, TEXT)))
        told = f"{said}: {_span(start_s, end_s)}"
        placed.append(_Placed(style, told, start, max(end, start + _THINNEST), label, label_at))
    spans = [
        (min(each.start, each.label_at), max(each.end, each.label_at + text_width(each.label, TEXT))) for each in placed
    ]
    return [replace(each, lane=lane) for each, lane in zip(placed, lanes(spans, gap=10), strict=True)]


def _labels(moments: Sequence[_Placed]) -> Panel:
    shown = [moment for moment in moments if moment.lane < _MOST_LANES]
    height = _LANE * (1 + max((moment.lane for moment in shown), default=-1))
    texts = (
        tag("text", moment.label, class_=f"said {moment.style}", x=moment.label_at, y=moment.top - 5)
        for moment in shown
    )
    return Panel(height + 6, join(texts))


def _band(moment: _Placed, bottom: float) -> Markup:
    width, style = moment.end - moment.start, moment.style
    return tag(
        "g",
        tag("title", moment.told),
        leaf("rect", class_=f"band {style}", x=moment.start, y=moment.top, width=width, height=bottom - moment.top),
        leaf("rect", class_=f"bar {style}", x=moment.start, y=moment.top, width=width, height=3.0),
    )


def _span(start_s: float, end_s: float) -> str:
    if end_s == start_s:
        return f"{start_s:.1f} s"
    return f"{start_s:.1f} s to " + ("the end" if math.isinf(end_s) else f"{end_s:.1f} s")


def _axis(frame: Frame, top: float, bottom: float, every: float) -> Iterator[Markup]:
    """Draw the time axis: a line through all panels at each tick, with its name below."""
    duration_s = frame.time.values[1]
    marks = ticks(duration_s, tick_step(duration_s, at_most=int(frame.time.length // every)))
    for mark in marks:
        x = frame.time(mark)
        yield leaf("path", class_="grid", d=f"M{number(x)} {number(top)}V{number(bottom)}")
        name = f"{mark:g} s" if mark == marks[-1] else f"{mark:g}"
        yield tag("text", name, class_="tick", x=x, y=bottom + 15, text_anchor="middle")
