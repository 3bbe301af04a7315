"""What a sandbox's PostgreSQL finds where one was killed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from brewctl.lifecycle import wait_until
from brewctl.sandbox import postgres


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the lock, and nobody else's folder."""
    with subprocess.Popen(["sleep", "60"]) as process:
        (tmp_path / "postmaster.pid").write_text(f"{process.pid}\n/data\n")
        yield process
        process.kill()


def test_the_lock_of_a_zombie_is_cleared_away(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    server.kill()
    zombie = psutil.Process(server.pid)
    wait_until("a zombie", lambda: zombie.status() == psutil.STATUS_ZOMBIE, timeout_s=20)
    postgres._forget_killed(tmp_path)
    assert not (tmp_path / "postmaster.pid").exists()


@pytest.mark.usefixtures("server")
def test_the_lock_of_a_process_that_runs_stays(tmp_path: Path) -> None:
    postgres._forget_killed(tmp_path)
    assert (tmp_path / "postmaster.pid").exists()


@pytest.mark.parametrize("lock", ["", "no pid\n", None])
def test_a_lock_that_says_nothing_is_postgres_own_affair(tmp_path: Path, lock: str | None) -> None:
    if lock is not None:
        (tmp_path / "postmaster.pid").write_text(lock)
    postgres._forget_killed(tmp_path)
    assert (tmp_path / "postmaster.pid").exists() == (lock is not None)
