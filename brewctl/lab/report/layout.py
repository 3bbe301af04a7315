"""The common parts of all panels: the frame, stacking, and legends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from brewctl.lab.report.geometry import Scale, text_width
from brewctl.lab.report.markup import Markup, join, number, tag

TEXT = 11.5  # font size in pixels, as in chart.css
_SWATCH = 26.0
_BETWEEN = 18.0
_LINE = 17.0


@dataclass(frozen=True)
class Frame:
    """The time scale and the edges, which all panels share. Lengths are pixels."""

    time: Scale
    key: str  # makes ids unique on a page with several pictures

    @property
    def left(self) -> float:
        """The left edge of the plots; names of ticks and rows are left of it."""
        return self.time.pixels[0]

    @property
    def right(self) -> float:
        """The right edge of the plots."""
        return self.time.pixels[1]


@dataclass(frozen=True)
class Panel:
    """A part of the picture, drawn from y = 0 down."""

    height: float
    content: Markup


@dataclass(frozen=True)
class Entry:
    """An entry of a legend: a swatch of 20 pixels around y = 0, a name, and perhaps a value."""

    swatch: Markup
    text: str
    value: str = ""


def at(x: float, y: float, content: Markup) -> Markup:
    """Move content that was drawn at 0, 0."""
    return tag("g", content, transform=f"translate({number(x)} {number(y)})")


def stack(panels: Iterable[Panel]) -> Markup:
    """Place panels below each other."""
    y, placed = 0.0, []
    for panel in panels:
        placed.append(at(0, y, panel.content))
        y += panel.height
    return join(placed)


def legend(entries: Sequence[Entry], frame: Frame, *, title: str = "") -> Panel:
    """Place entries side by side, in as many lines as they need."""
    x, y = frame.left, 12.0
    parts = []
    if title:
        parts.append(tag("text", title, class_="title", x=x, y=y))
        x += text_width(title, TEXT) + _BETWEEN
    for entry in entries:
        needed = _SWATCH + text_width(f"{entry.text} {entry.value}", TEXT)
        if x > frame.left and x + needed > frame.right:
            x, y = frame.left, y + _LINE
        value = tag("tspan", f" {entry.value}", class_="value") if entry.value else Markup()
        parts += [at(x, y - 4, entry.swatch), tag("text", entry.text, value, x=x + _SWATCH, y=y)]
        x += needed + _BETWEEN
    return Panel(y + 8, join(parts))
