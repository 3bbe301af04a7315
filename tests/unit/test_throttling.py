"""A CPU limit that stops a process: the kernel's own counts, in a real control group where one can be made."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brewctl.throttling import Throttling


def counted(folder: Path, periods: int, throttled: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.stat").write_text(
        f"usage_usec 8000\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec 50\n"
    )


@pytest.mark.parametrize(
    ("groups", "folder"),
    [
        ("0::/system.slice/brew.service\n", "system.slice/brew.service"),  # version 2
        ("0::/system.slice/brew.service\n", "system.slice"),  # the limit is the slice's
        ("0::/\n", ""),  # a container's own
        ("0::/../../pod\n", ""),  # seen from a namespace beside it
        ("4:memory:/a\n2:cpu,cpuacct:/docker/1f\n0::/\n", "cpu,cpuacct/docker/1f"),  # version 1
        ("1:cpu:/docker/1f\n", "cpu"),  # a container's, under the host's path
    ],
)
def test_a_limit_is_found_in_the_groups_of_this_process_and_around_them(
    tmp_path: Path, groups: str, folder: str
) -> None:
    listed, mounted = tmp_path / "cgroup", tmp_path / "mounted"
    listed.write_text(groups)
    counted(mounted / folder, 100, 40)
    throttling = Throttling(listed, mounted)
    assert throttling.share() == 0
    counted(mounted / folder, 110, 45)
    assert throttling.share() == pytest.approx(0.5)
    assert throttling.share() == 0  # only what is new


@pytest.mark.parametrize(
    ("groups", "stat"),
    [
        ("", "nr_periods 1\nnr_throttled 1\n"),
        ("0::/\n", ""),
        ("0::/\n", "usage_usec 5\n"),  # the root has no limit
        ("0::/\n", "nr_periods many\nnr_throttled 1\n"),
        ("0::/\n", "nr_periods 1\n\x00\n"),
        ("no line of this kind\n", "nr_periods 1\nnr_throttled 1\n"),
    ],
)
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, groups: str, stat: str) -> None:
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "cpu.stat").write_text(stat)
    assert Throttling(tmp_path / "cgroup", tmp_path).share() == 0
    assert Throttling(tmp_path / "absent", tmp_path).share() == 0


def test_a_group_that_is_gone_or_counts_anew_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    counted(tmp_path, 100, 40)
    throttling = Throttling(tmp_path / "cgroup", tmp_path)
    counted(tmp_path, 5, 5)
    assert throttling.share() == 0
    (tmp_path / "cpu.stat").unlink()
    assert throttling.share() == 0


BUSY = """
import time
from brewctl.throttling import Throttling
throttling = Throttling()
until = time.monotonic() + 30
while (share := throttling.share()) < 0.5 and time.monotonic() < until:
    ends = time.monotonic() + 1
    while time.monotonic() < ends:
        pass
print(share)
"""


@contextlib.contextmanager
def limited_group(milliseconds: int) -> Iterator[Path]:
    """Make a group with so much of a core's time in each 100 ms, or skip."""
    older, newer = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    version_1 = older.is_dir()
    group = (older if version_1 else newer) / f"brewctl-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        limit = {"cpu.cfs_quota_us": milliseconds * 1000} if version_1 else {"cpu.max": f"{milliseconds * 1000} 100000"}
        if not all((group / name).exists() for name in limit):
            pytest.skip("no CPU limit can be set here")
        for name, value in limit.items():
            (group / name).write_text(str(value))
        yield group
    finally:
        group.rmdir()


def test_a_process_that_a_real_limit_stops_says_so() -> None:
    with limited_group(20) as group:

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        done = subprocess.run(
            [sys.executable, "-c", BUSY], preexec_fn=join, capture_output=True, text=True, timeout=60, check=True
        )
    assert float(done.stdout) >= 0.5
