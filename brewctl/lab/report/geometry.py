"""Convert values to pixels: scales, ticks, lanes, thinned lines. Independent of SVG and of orders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Span = tuple[float, float]

_CHARACTER = 0.58  # average width of a character, as a share of the font's size


@dataclass(frozen=True)
class Scale:
    """A linear map from a span of values to a span of pixels. Values outside map to the edges."""

    values: Span
    pixels: Span

    def __call__(self, value: float) -> float:
        """Return a value's position in pixels."""
        low, high = self.values
        start, end = self.pixels
        share = (min(max(value, low), high) - low) / (high - low)
        return start + share * (end - start)

    @property
    def length(self) -> float:
        """The length of the span in pixels."""
        return abs(self.pixels[1] - self.pixels[0])


def tick_step(high: float, at_most: int) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, … that needs at most `at_most` steps from 0 to `high`."""
    wanted = max(high / at_most, 1.0)
    power: float = 10 ** math.floor(math.log10(wanted))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= wanted)


def ticks(high: float, step: float) -> list[float]:
    """Return the multiples of `step` from 0 to `high`."""
    return [index * step for index in range(math.floor(high / step) + 1)]


def text_width(text: str, size: float) -> float:
    """Estimate a text's width in pixels; the reader's font is unknown."""
    return len(text) * size * _CHARACTER


def shorten(text: str, pixels: float, size: float) -> str:
    """Shorten a text that would be wider than `pixels`, with an ellipsis."""
    fits = int(pixels / (size * _CHARACTER))
    return text if len(text) <= fits else f"{text[: max(fits - 1, 0)].rstrip()}…"


def lanes(spans: Sequence[Span], *, gap: float) -> list[int]:
    """Assign each span, in the order of starts, the first lane in which it touches no other."""
    ends: list[float] = []
    chosen = []
    for start, end in spans:
        lane = next((index for index, taken in enumerate(ends) if taken + gap <= start), len(ends))
        ends[lane : lane + 1] = [end]
        chosen.append(lane)
    return chosen


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """Reduce a line to `limit` points: the first, the last, and the extremes of each stretch between."""
    if len(points) <= limit:
        return list(points)
    inner = range(1, len(points) - 1)
    stretches = (limit - 2) // 2
    kept = {0, len(points) - 1}
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        kept |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return [points[at] for at in sorted(kept)]
