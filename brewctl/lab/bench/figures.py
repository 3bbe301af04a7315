"""What was measured: each figure beside its floor, over as many runs as there were, and as JSON."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brewctl.errors import UsageError

_VERSION = 2
# Of a version 1 there are no runs: the one value is what version 2 has as the median.
_READABLE = (1, 2)


@dataclass(frozen=True)
class Figure:
    """A measured value, and what it is compared with. Either is None where it could not be measured.

    `floor` is what is possible here, measured in the same run. `at_least` and `at_most` are what the ratio of the two
    is to reach; of a figure without a floor, the value itself. `optional`: that it is None is no failure.
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
        """The value over its floor."""
        return self.value / self.floor if self.floor and self.value is not None else None

    @property
    def judged(self) -> bool:
        """Say whether there is anything to be reached."""
        return self.at_least is not None or self.at_most is not None


@dataclass(frozen=True)
class BenchRow:
    """A figure over all runs that measured it: the medians, and the spread. Judged by the median of the ratios.

    Each ratio is of one run, whose floor was measured beside its value. A run in which a figure was not to be judged,
    on a busy machine, for example, does not count for the verdict.
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
        """The median."""
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
        """Say whether it should have been measured, and no run did."""
        return self.value is None and not any(figure.optional for figure in self.runs)

    @property
    def reached(self) -> bool | None:
        """Whether it is what it is to be; None where that is not known."""
        judged = [figure for figure in self.runs if figure.judged]
        told = _median(figure.ratio if figure.floor_name else figure.value for figure in judged)
        if told is None:
            return None
        at_least, at_most = judged[-1].at_least, judged[-1].at_most
        return (at_least is None or told >= at_least) and (at_most is None or told <= at_most)

    @property
    def target(self) -> str:
        """What is to be reached, in words."""
        judged = next((figure for figure in self.runs if figure.judged), None)
        if judged is None:
            return ""
        return f"≥ {judged.at_least:g}" if judged.at_least is not None else f"≤ {judged.at_most:g}"


def rows(figures: Iterable[Figure]) -> list[BenchRow]:
    """Put the figures of the same name, one of each run, together."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.name, []).append(figure)
    return [BenchRow(runs) for runs in found.values()]


def to_json(figures: Sequence[Figure], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a bench: its figures over all runs, and the machine."""
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
    """Read the values of an earlier bench, by name: the medians. Raises UsageError where that is no such file."""
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
