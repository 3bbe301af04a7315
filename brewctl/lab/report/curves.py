"""Draw the counters: orders and effects with one scale, unpublished outbox rows with another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from brewctl.lab.record.history import FlowSample
from brewctl.lab.report.geometry import Point, Scale, thin, tick_step, ticks
from brewctl.lab.report.layout import Entry, Frame, Panel, legend, stack
from brewctl.lab.report.markup import Markup, join, leaf, number, tag

_MOST_POINTS = 600
_READINGS = 120
_THOUSANDS_FROM = 10_000
_STYLES = 5  # line styles for effects in chart.css; further downstreams share them


@dataclass(frozen=True)
class _Counter:
    """A counter: its class in chart.css, its label, and its value in a sample."""

    style: str
    label: str
    read: Callable[[FlowSample], int]
    filled: bool = False

    def points(self, samples: Sequence[FlowSample]) -> list[Point]:
        return [(sample.at_s, float(self.read(sample))) for sample in samples]


_ORDERS = _Counter("orders", "orders", lambda sample: sample.orders, filled=True)
_OUTBOX = _Counter("outbox", "unpublished outbox rows", lambda sample: sample.outbox_unpublished, filled=True)


def _growing(sample: FlowSample) -> list[_Counter]:
    """Return orders and effects in the order of drawing: each style leaves those below it visible."""
    effects = [
        _Counter(f"effects{number % _STYLES + 1}", name, lambda sample, name=name: sample.value(name))  # type: ignore[misc]
        for number, name in enumerate(sample.effects)
    ]
    return [_ORDERS, *effects]


def curves(samples: Sequence[FlowSample], frame: Frame) -> Panel:
    """Draw the counters over time. Tooltips show the values at each moment."""
    if not samples:
        said = tag("text", "no samples of the counters", class_="quiet", x=frame.left, y=14)
        return Panel(28, said)
    last, most = samples[-1], max(sample.outbox_unpublished for sample in samples)
    growing = _growing(last)
    panels = [
        legend([_entry(counter, f"{counter.read(last):,}") for counter in growing], frame),
        _plot(growing, samples, frame, height=210),
        legend([_entry(_OUTBOX, f"at most {most:,}")], frame),
        _plot((_OUTBOX,), samples, frame, height=64),
    ]
    height = sum(panel.height for panel in panels)
    return Panel(height, join([stack(panels), *_readings([*growing, _OUTBOX], samples, frame, height)]))


def _entry(counter: _Counter, value: str) -> Entry:
    return Entry(leaf("path", class_=f"line {counter.style}", d="M0 0H20"), counter.label, value)


def _plot(counters: Sequence[_Counter], samples: Sequence[FlowSample], frame: Frame, *, height: float) -> Panel:
    highest = max(counter.read(sample) for sample in samples for counter in counters)
    step = tick_step(max(highest, 1), at_most=int(height // 30))
    marks = ticks(max(highest, 1) + step * 0.999, step)  # up to the first tick that no counter exceeds
    scale = Scale((0.0, marks[-1]), (height, 6.0))
    lines = [
        _line(counter, [(frame.time(at_s), scale(value)) for at_s, value in points], bottom=height)
        for counter in counters
        for points in [thin(counter.points(samples), _MOST_POINTS)]
    ]
    return Panel(height + 12, join([*_levels(marks, scale, frame), *lines]))


def _levels(marks: Sequence[float], scale: Scale, frame: Frame) -> Iterator[Markup]:
    for mark in marks:
        y = scale(mark)
        yield leaf(
            "path", class_="grid" if mark else "base", d=f"M{number(frame.left)} {number(y)}H{number(frame.right)}"
        )
        yield tag("text", _short(mark), class_="tick", x=frame.left - 7, y=y + 4, text_anchor="end")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value < _THOUSANDS_FROM else f"{value / 1000:,.12g}k"


def _line(counter: _Counter, points: Sequence[Point], *, bottom: float) -> Markup:
    path = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    area = f"M{number(points[0][0])} {number(bottom)}L{path}L{number(points[-1][0])} {number(bottom)}Z"
    # A line of one point has no length; its round cap makes it a dot.
    line = f"M{path}h0" if len(points) == 1 else f"M{path}"
    return join(
        [
            leaf("path", class_=f"area {counter.style}", d=area) if counter.filled else Markup(),
            leaf("path", class_=f"line {counter.style}", d=line),
        ]
    )


def _readings(
    counters: Sequence[_Counter], samples: Sequence[FlowSample], frame: Frame, height: float
) -> Iterator[Markup]:
    """Cover the plots with invisible columns whose tooltips show the last sample in each."""
    columns = int(min(_READINGS, max(len(samples), 1)))
    seen = {
        min(int((frame.time(sample.at_s) - frame.left) / frame.time.length * columns), columns - 1): sample
        for sample in samples
    }
    width = frame.time.length / columns
    for column, sample in seen.items():
        told = ", ".join(f"{counter.label} {counter.read(sample):,}" for counter in counters)
        title = tag("title", f"{sample.at_s:.1f} s: {told}")
        yield tag("rect", title, class_="reading", x=frame.left + column * width, y=0.0, width=width, height=height)
