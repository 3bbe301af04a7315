"""Words, signs, colours and strips for live views, the same in all of them.

Colours are the terminal's own sixteen, for light and dark terminals. No information is in the colour alone.
"""

from collections.abc import Iterable, Sequence

from rich.text import Text

# The states of a process, each with its sign and colour.
_STATES = {
    "runs": ("●", "green"),
    "starts": ("◌", "yellow"),
    "paused": ("‖", "yellow"),
    "silent": ("?", "yellow"),
    "stopped": ("○", "dim"),
    "killed": ("✗", "bold red"),
    "gone": ("✗", "red"),
}
_NODES = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
_BARS = "▁▂▃▄▅▆▇█"


def state(word: str) -> Text:
    """Return a process's state with sign and colour: runs, starts, paused, silent, stopped, killed or gone."""
    sign, colour = _STATES[word]
    return Text(f"{sign} {word}", style=colour)


def colours(nodes: Iterable[str]) -> dict[str, str]:
    """Return a colour for each node; the same nodes always get the same colours."""
    return {node: _NODES[index % len(_NODES)] for index, node in enumerate(sorted(set(nodes)))}


def strip(partitions: Iterable[int], owned: Iterable[int], *, colour: str, quiet: bool = False) -> Text:
    """Draw which of a topic's partitions a member owns. `quiet`: the member does not process them."""
    mine, drawn = set(owned), Text()
    sign, style = ("✗", "black on red") if quiet else (" ", f"black on {colour}")
    for partition in partitions:
        if partition in mine:
            drawn.append(f"{sign}{partition} ", style=style)
        else:
            drawn.append(" · ", style="dim")
    return drawn


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the last `width` values as bars, scaled from 0 to the highest."""
    shown = values[-width:]
    highest = max(shown, default=0.0) or 1.0
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in shown).rjust(width)


def ago(seconds: float) -> str:
    """Format a duration: 0.4 s, 12 s, 3 min, 5 h."""
    if seconds < 10:  # noqa: PLR2004 - tenths matter below it
        return f"{seconds:.1f} s"
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"
