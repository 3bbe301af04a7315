"""What was measured: each figure beside its floor, as a table's rows and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brewctl import affinity
from brewctl.errors import UsageError

_VERSION = 1


@dataclass(frozen=True)
class Figure:
    """A measured value, and what it is compared with. Either is None where it could not be measured.

    `floor` is what is possible here, measured in the same run. `at_least` and `at_most` are what the ratio of the two
    is to reach; of a figure without a floor, the value itself.
    """

    name: str
    value: float | None
    unit: str  # "/s", "ms", "MB"
    floor: float | None = None
    floor_name: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        """The value over its floor."""
        return self.value / self.floor if self.floor and self.value is not None else None

    @property
    def reached(self) -> bool | None:
        """Whether it is what it is to be; None where that is not known."""
        told = self.ratio if self.floor_name else self.value
        if told is None or (self.at_least is None and self.at_most is None):
            return None
        return (self.at_least is None or told >= self.at_least) and (self.at_most is None or told <= self.at_most)

    @property
    def target(self) -> str:
        """What is to be reached, in words."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


def to_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """Describe a run: its figures, and the machine."""
    rows = [{**asdict(figure), "ratio": figure.ratio, "reached": figure.reached} for figure in figures]
    return {"version": _VERSION, "machine": machine(), "figures": rows}


def earlier(path: Path) -> dict[str, float]:
    """Read the values of an earlier run, by name. Raises UsageError where that is no such file."""
    try:
        run = json.loads(path.read_text("utf-8"))
        if run["version"] != _VERSION:
            raise UsageError(f"--against {path} is of another version of brewctl")
        return {row["name"]: float(row["value"]) for row in run["figures"] if row["value"] is not None}
    except OSError as error:
        raise UsageError(f"--against {path} can't be read ({(error.strerror or str(error)).lower()})") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--against {path} is no result of `brewctl bench --json`") from None


def machine() -> dict[str, Any]:
    """Say what it was measured on."""
    return {
        "cores": len(affinity.allowed()) or os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
