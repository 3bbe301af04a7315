"""Measured figures with their floors, over one or more runs; also as JSON."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brewctl.errors import UsageError

_VERSION = 2
# Version 1 has no runs: its single value is read as the median.
_READABLE = (1, 2)


@dataclass(frozen=True)
class Figure:
    """A measured value and its floor. Either is None if it could not be measured.

    `floor`: the best possible value on this machine, measured in the same run. `at_least` and `at_most` are targets for
    the ratio of both, or without a floor for the value. `optional`: a missing value is no failure.
    """

    name: str
    value: float | None
    unit: str  # "/s", "ms", "MB", "%"
    floor: float | None = None
    floor_name: str = ""
    at_least: float | None = None
    at_most: float | None = None
    optional: bool = False

    @property
    def ratio(self) -> float | None:
        """The value divided by its floor."""
        return self.value / self.floor if self.floor and self.value is not None else None

    @property
    def judged(self) -> bool:
        """Whether it has a target."""
        return self.at_least is not None or self.at_most is not None


@dataclass(frozen=True)
class BenchRow:
    """A figure over all runs: medians and spread. The median of the ratios must reach the target.

    Each ratio is of one run. Runs in which the figure had no target, for example on a busy machine, are not judged.
    """

    runs: Sequence[Figure]

    @property
    def name(self) -> str:
        """The figure's name."""
        return self.runs[0].name

    @property
    def unit(self) -> str:
        """The unit of value and floor."""
        return self.runs[0].unit

    @property
    def value(self) -> float | None:
        """The median of the values."""
        return _median(figure.value for figure in self.runs)

    @property
    def floor(self) -> float | None:
        """The median of the floors."""
        return _median(figure.floor for figure in self.runs)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return _median(figure.ratio for figure in self.runs)

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest value."""
        return _spread(figure.value for figure in self.runs)

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio."""
        return _spread(figure.ratio for figure in self.runs)

    @property
    def missing(self) -> bool:
        """Whether it is not optional, and no run could measure it."""
        return self.value is None and not any(figure.optional for figure in self.runs)

    @property
    def reached(self) -> bool | None:
        """Whether it reaches its target; None if it has none, or was not measured."""
        judged = [figure for figure in self.runs if figure.judged]
        told = _median(figure.ratio if figure.floor_name else figure.value for figure in judged)
        if told is None:
            return None
        at_least, at_most = judged[-1].at_least, judged[-1].at_most
        return (at_least is None or told >= at_least) and (at_most is None or told <= at_most)

    @property
    def target(self) -> str:
        """The target, as text; "" if there is none."""
        judged = next((figure for figure in self.runs if figure.judged), None)
        if judged is None:
            return ""
        return f"≥ {judged.at_least:g}" if judged.at_least is not None else f"≤ {judged.at_most:g}"


def rows(figures: Iterable[Figure]) -> list[BenchRow]:
    """Group figures by name, one of each run."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.name, []).append(figure)
    return [BenchRow(runs) for runs in found.values()]


def to_json(figures: Sequence[Figure], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a bench: its figures over all runs, and the machine."""
    return {"version": _VERSION, "machine": dict(machine), "figures": [_described(row) for row in rows(figures)]}


def _described(row: BenchRow) -> dict[str, Any]:
    last = next((figure for figure in reversed(row.runs) if figure.judged), row.runs[-1])
    lowest, highest = row.spread or (None, None)
    return {
        "name": row.name,
        "value": row.value,
        "lowest": lowest,
        "highest": highest,
        "unit": row.unit,
        "floor": row.floor,
        "floor_name": last.floor_name,
        "ratio": row.ratio,
        "at_least": last.at_least,
        "at_most": last.at_most,
        "reached": row.reached,
        "runs": [{"value": figure.value, "floor": figure.floor, "ratio": figure.ratio} for figure in row.runs],
    }


def earlier(path: Path) -> dict[str, float]:
    """Read the median values of an earlier bench, by name. Raises UsageError if the file is no bench's JSON."""
    try:
        bench = json.loads(path.read_text("utf-8"))
        if bench["version"] not in _READABLE:
            raise UsageError(f"--against {path} is of another version of brewctl")
        return {row["name"]: float(row["value"]) for row in bench["figures"] if row["value"] is not None}
    except OSError as error:
        raise UsageError(f"--against {path} can't be read ({(error.strerror or str(error)).lower()})") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--against {path} is no result of `brewctl bench --json`") from None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _spread(values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
