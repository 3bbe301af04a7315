"""Disk faults: move PostgreSQL's or a broker's data to a small disk, and fill that."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from brewctl.lab.chaos.faults import Fault, require_brokers, restore, wait
from brewctl.lab.chaos.stage import SkippedError, Stage

_DISK_BYTES = 64 * 1024 * 1024


def fill_postgres_disk() -> Fault:
    """Move the orders and outbox tables to a small disk, and fill it."""

    def begin(stage: Stage) -> None:
        disk = stage.servers.home / "chaos-disk"
        owner = (stage.servers.home / "postgres" / "data").stat()
        _mount(disk, f"size={_DISK_BYTES},mode=0700,uid={owner.st_uid},gid={owner.st_gid}")
        with stage.postgres() as connection:
            connection.execute(sql.SQL("CREATE TABLESPACE chaos LOCATION {}").format(sql.Literal(str(disk))))
            _move_tables(connection, "chaos")
        _fill(disk)

    def end(stage: Stage) -> None:
        disk = stage.servers.home / "chaos-disk"
        if not disk.exists():
            return
        _ballast(disk).unlink(missing_ok=True)
        with stage.postgres() as connection:
            _move_tables(connection, "pg_default")
            connection.execute("DROP TABLESPACE IF EXISTS chaos")
        _unmount(disk)

    return Fault("postgres's disk full", begin, end)


def _move_tables(connection: psycopg.Connection[tuple[object, ...]], space: str) -> None:
    for table in ("orders", "outbox"):
        connection.execute(
            sql.SQL("ALTER TABLE {} SET TABLESPACE {}").format(sql.Identifier(table), sql.Identifier(space))
        )


def fill_broker_disk(name: str) -> Fault:
    """Move a broker's data to a small disk, and fill it. The broker then ends itself."""

    def folder(stage: Stage) -> Path:
        return stage.servers.home / "kafka" / name.removeprefix("kafka-")

    def begin(stage: Stage) -> None:
        require_brokers(stage, 3)
        data, kept = folder(stage) / "data", folder(stage) / "data.kept"
        stage.servers.end(name)
        data.rename(kept)
        try:
            _mount(data, f"size={_DISK_BYTES},mode=0755")
        except SkippedError:
            kept.rename(data)
            restore(stage)
            raise
        _copy(kept, data)
        restore(stage)
        _fill(data)
        wait(f"the end of {name}", lambda: not stage.servers.runs(name))

    def end(stage: Stage) -> None:
        data, kept = folder(stage) / "data", folder(stage) / "data.kept"
        if not kept.exists():
            return
        stage.servers.end(name)
        _ballast(data).unlink(missing_ok=True)
        shutil.rmtree(kept)
        _copy(data, kept)
        _unmount(data)
        kept.rename(data)
        restore(stage)

    return Fault(f"{name}'s disk full", begin, end)


def _mount(folder: Path, options: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    mount = shutil.which("mount")
    done = mount and subprocess.run(  # noqa: S603
        [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        folder.rmdir()
        why = " ".join(done.stderr.split()) if done else "no mount command"
        raise SkippedError(f"needs a small disk, which only root can mount ({why})")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], capture_output=True, check=True)  # noqa: S603, S607
    folder.rmdir()


def _ballast(folder: Path) -> Path:
    return folder / "ballast"


def _fill(folder: Path) -> None:
    with contextlib.suppress(OSError), _ballast(folder).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", f"{source}/.", str(target)], capture_output=True, check=True)  # noqa: S603, S607
