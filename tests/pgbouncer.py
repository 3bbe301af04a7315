"""The real PgBouncer between a test and its server."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.lifecycle import wait_until
from brewctl.sandbox.processes import free_port

_NOBODY = 65534


def program() -> str:
    """Return where it is. Skips where it can't be had: it is a system package."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        pytest.skip("no pgbouncer here: apt-get install pgbouncer")
    return found


@contextlib.contextmanager
def pooled(url: str, *, mode: str = "transaction", size: int = 1, ignored: str = "") -> Iterator[str]:
    """Yield the URL of a PgBouncer in front of `url`, with `size` server connections a database.

    `ignored` are startup parameters that it drops instead of refusing them.
    """
    server = conninfo_to_dict(url)
    port = free_port()
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "admin_users": "brew",
        "pool_mode": mode,
        "default_pool_size": size,
        "server_login_retry": 1,
        "ignore_startup_parameters": ignored or "extra_float_digits",
    }
    behind = " ".join(f"{name}={server[name]}" for name in ("host", "port", "user", "password") if name in server)
    lines = ["[databases]", f"* = {behind}", "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
    # Not in pytest's folder, into which root lets nobody else.
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder:
        Path(folder).chmod(0o755)
        ini = Path(folder, "pgbouncer.ini")
        ini.write_text("\n".join(lines) + "\n", encoding="utf-8")
        root = os.geteuid() == 0
        who = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"] if root else []
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen([*who, program(), str(ini)], stdout=log, stderr=log)
        through = make_conninfo(url, host="127.0.0.1", port=port)
        try:
            wait_until("a pgbouncer", lambda: process.poll() is not None or _listens(through), timeout_s=60)
            assert process.poll() is None, Path(folder, "log").read_text("utf-8")
            yield through
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def guest(url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Another program's connection through the same PgBouncer, which asks for nothing."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        yield connection


def shown(connection: psycopg.Connection[tuple[object, ...]], *names: str) -> dict[str, str]:
    """What is in force for the next statement."""
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    row = connection.execute(f"SELECT {columns}".encode()).fetchone() or ()
    return dict(zip(names, map(str, row), strict=True))


def tell(url: str, command: str) -> None:
    """Give an order to PgBouncer itself, such as PAUSE."""
    with psycopg.connect(url, dbname="pgbouncer", autocommit=True, cursor_factory=psycopg.ClientCursor) as console:
        console.execute(command.encode())


def _listens(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
