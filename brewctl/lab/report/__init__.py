"""The report of a run, written by every command that writes one: a single HTML file, or one act as an SVG.

Both need nothing else: no script, no font, no network. The same input gives the same bytes.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from brewctl.errors import BrewError
from brewctl.lab.history import Act
from brewctl.lab.report import chart, page


def write(path: Path, *, title: str, subtitle: str, acts: Sequence[Act], facts: Sequence[tuple[str, str]]) -> None:
    """Write the report of some acts. Facts say how it came about: command, seed, versions, machine, date.

    Raises BrewError where the file can't be written.
    """
    _save(path, page.render(title, subtitle, acts, facts, style=_style("chart.css") + _style("page.css")))


def write_svg(path: Path, act: Act) -> None:
    """Write an act as a picture of its own. Raises BrewError where the file can't be written."""
    _save(path, chart.poster(act, _style("chart.css")))


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise BrewError(f"can't write {path} ({error.strerror})") from error


def _style(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")
