"""What a sandbox's PostgreSQL finds where one was killed, and on whom it can be run."""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from brewctl.sandbox import postgres

NOBODYS_UID = 54_321


@contextlib.contextmanager
def process(name: str, tmp_path: Path, *, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this name that works in a folder."""
    program = tmp_path / name
    if not program.exists():
        shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"], cwd=cwd) as running:
        try:
            wait_until("its name", lambda: psutil.Process(running.pid).name() == name, timeout_s=20, every_s=0.01)
            yield running
        finally:
            running.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A server's folder."""
    data = tmp_path / "data"
    data.mkdir()
    return data


def lock(data: Path, pid: int) -> None:
    (data / "postmaster.pid").write_text(f"{pid}\n{data}\n1700000000\n5432\n")


def test_the_lock_of_a_zombie_is_cleared_away(data: Path, tmp_path: Path) -> None:
    with process("postgres", tmp_path, cwd=tmp_path) as server:
        lock(data, server.pid)
        server.kill()
        zombie = psutil.Process(server.pid)
        wait_until("a zombie", lambda: zombie.status() == psutil.STATUS_ZOMBIE, timeout_s=20)
        postgres._forget_killed(data)
    assert not (data / "postmaster.pid").exists()


@pytest.mark.parametrize(("name", "folder"), [("cron", "."), ("postgres", "."), ("cron", "data")])
def test_the_lock_of_a_process_that_is_no_server_of_these_data_is_cleared_away(
    name: str, folder: str, data: Path, tmp_path: Path
) -> None:
    """After a reboot, or in a new container, the pid is another program's, or another server's. It lives on."""
    with process(name, tmp_path, cwd=tmp_path / folder) as stranger:
        lock(data, stranger.pid)
        assert postgres.stale_lock(data) == stranger.pid
        postgres._forget_killed(data)
        assert stranger.poll() is None
    assert not (data / "postmaster.pid").exists()


def test_the_lock_of_a_server_that_runs_stays(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_LAST_CHILDREN_S", 0.1)
    with process("postgres", tmp_path, cwd=data) as server:
        lock(data, server.pid)
        assert postgres.stale_lock(data) is None
        postgres._forget_killed(data)
    assert (data / "postmaster.pid").exists()


@pytest.mark.parametrize("text", ["", "no pid\n", "4194304\n", None])
def test_a_lock_that_names_no_process_is_postgres_own_affair(data: Path, text: str | None) -> None:
    if text is not None:
        (data / "postmaster.pid").write_text(text)
    postgres._forget_killed(data)
    assert (data / "postmaster.pid").exists() == (text is not None)


def unknown(_uid: int) -> pwd.struct_passwd:
    raise KeyError


@pytest.mark.parametrize("unshare", ["missing", "forbidden"])
def test_a_user_without_a_name_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unshare: str
) -> None:
    """Many containers forbid the namespace in which the user could go by another name."""
    if unshare == "forbidden":
        program = tmp_path / "unshare"
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: NOBODYS_UID)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(BrewError, match=rf"^user {NOBODYS_UID} has no entry in /etc/passwd") as refused:
        postgres.require(tmp_path)
    assert "BREW_DATABASE_URL" in refused.value.hint
    assert not (tmp_path / "postgres").exists()


def test_a_user_without_a_name_needs_none_for_data_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODYS_UID)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    postgres.require(tmp_path)


def test_root_without_nobody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", missing)
    with pytest.raises(BrewError, match=r"^postgres refuses to run as root, and there is no user `nobody`"):
        postgres.require(tmp_path)
