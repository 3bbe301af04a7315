"""Write reports: a run as a single HTML file, an act or a terminal's screen as an SVG.

The files need no scripts, fonts or network. Equal input gives equal bytes.
"""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from brewctl.errors import BrewError
from brewctl.lab.record.history import Act
from brewctl.lab.report import chart, page

_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
_GREY = "#4b4e55"  # the black of rich.terminal_theme.SVG_EXPORT_THEME


def write(path: Path, *, title: str, subtitle: str, acts: Sequence[Act], facts: Sequence[tuple[str, str]]) -> None:
    """Write an HTML report of acts. `facts`: the origin of the report, such as command, seed and versions.

    Raises BrewError if the file can't be written.
    """
    _save(path, page.render(title, subtitle, acts, facts, style=_style("chart.css") + _style("page.css")))


def write_svg(path: Path, act: Act) -> None:
    """Write an act's chart as an SVG. Raises BrewError if the file can't be written."""
    _save(path, chart.poster(act, _written_out(_style("chart.css"))))


def write_terminal(path: Path, drawn: str) -> None:
    """Write a terminal's screen, an SVG by Rich. Raises BrewError if the file can't be written."""
    # Rich's SVG would load a font from the network, and its black is a grey, too light for text on colours.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace("font-family: Fira Code, monospace", f"font-family: {_FONTS}")
    _save(path, drawn.replace(f"fill: {_GREY}", "fill: #121212"))


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise BrewError(f"can't write {path} ({error.strerror})") from error


def _style(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def _written_out(style: str) -> str:
    """Replace a style sheet's variables with their values, as many SVG viewers do not support variables."""
    light, dark = (
        dict(re.findall(r"--(\w+): ([^;]+);", root)) for root in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    rules = [line for line in style.splitlines() if line.startswith(".")]

    def valued(line: str, values: dict[str, str]) -> str:
        return re.sub(r"var\(--(\w+)\)", lambda found: values[found[1]], line)

    coloured = [valued(line, light | dark) for line in rules if "var(" in line]
    return "\n".join(
        [
            *(valued(line, light) for line in rules),
            "@media screen and (prefers-color-scheme: dark) {",
            *coloured,
            "}",
            "",
        ]
    )
