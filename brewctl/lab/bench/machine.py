"""This machine and its speed, to recognise figures of another machine, or of a busier hour."""

import contextlib
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brewctl import affinity
from brewctl.lab.bench.cpu import Meter

_LOOK_S = 1.0
_ROUNDS = 1_000_000
_LOOPS = 5
_APPENDS = 50
_APPENDED = bytes(8192)  # a page of PostgreSQL's log
_LONGEST_S = 5.0  # fewer appends on a very slow disk
_MODEL = re.compile(r"^model name\s*:\s*(.+?)\s*$", re.MULTILINE)


def described(folder: Path, *, ours: Sequence[int] = ()) -> dict[str, Any]:
    """Describe this machine, and measure its speed. Takes about two seconds.

    `folder`: on the same disk as the servers' data. `ours`: the servers' pids, which do not count as other work.
    """
    return {
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _model(),
        "python": platform.python_version(),
        "others_busy": _others(ours),
        "loop_ms": _loop_ms(),
        "fsync_ms": _fsync_ms(folder),
    }


def cores() -> int:
    """Count the cores that this process may use."""
    return len(affinity.allowed()) or os.cpu_count() or 1


def _model() -> str:
    """Return the processor's name, by proc_cpuinfo(5); "" if unknown."""
    with contextlib.suppress(OSError):
        if found := _MODEL.search(Path("/proc/cpuinfo").read_text("utf-8", "replace")):
            return " ".join(found[1].split())
    return ""


def _others(ours: Sequence[int]) -> float | None:
    """Return the share of all cores that other processes than `ours` and this one take now."""
    meter = Meter({"ours": [*ours, os.getpid()]})
    time.sleep(_LOOK_S)
    return meter.others()


def _loop_ms() -> float:
    """Return the milliseconds of a fixed loop in Python, the fastest of several: the least disturbed."""
    took = []
    for _ in range(_LOOPS):
        began, total = time.perf_counter(), 0
        for number in range(_ROUNDS):
            total += number & 7
        took.append(time.perf_counter() - began)
    return min(took) * 1000


def _fsync_ms(folder: Path) -> float | None:
    """Return the median milliseconds to append 8 kB and fsync, as a commit does. None if no file can be written."""
    took: list[float] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            until = time.perf_counter() + _LONGEST_S
            while len(took) < _APPENDS and (began := time.perf_counter()) < until:
                file.write(_APPENDED)
                os.fsync(file.fileno())
                took.append(time.perf_counter() - began)
    except OSError:
        return None
    return statistics.median(took) * 1000
