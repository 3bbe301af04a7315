"""Migrate: how long `brewctl db migrate` takes on a large database of the first schema, and how it delays roles.

This version's roles refuse the old schema. So the roles are represented by the statements of the first release, each
in a session of its own. The leg creates a database of its own on the same server.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import psycopg
from psycopg.conninfo import make_conninfo

from brewctl import sql
from brewctl.config import Settings, environment
from brewctl.delivery import database
from brewctl.errors import BrewError
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground
from brewctl.sql import bench_queries

DEFAULT_ROWS = 1_000_000
_NAME = "brewctl_bench_migrate"
_FILLED_AT_ONCE = 100_000
_BEFORE_S = 20.0
_PAUSE_S = 0.002  # between two statements of a role
_ALLOWED_MS = 100.0
_ROLES = {
    "order": bench_queries["first_order"],
    "publisher": bench_queries["first_publish"],
    "reservation": bench_queries["first_reservation"],
    "notification": bench_queries["first_notification"],
}


def run(ground: Ground) -> Iterator[Figure]:
    """Fill a database of the first schema, run the roles' statements on it, and migrate it meanwhile."""
    rows = ground.sizes.rows or DEFAULT_ROWS
    with _fresh(ground) as settings, psycopg.connect(database.conninfo(settings), autocommit=True) as psql:
        psql.execute(sql.migrations[1])
        _fill(ground, psql, rows)
        files = _files(psql)
        with _loaded(settings) as roles:
            ground.tell(f"roles of the first release, for {_BEFORE_S:g} s")
            time.sleep(_BEFORE_S)
            before = {role.name: role.slowest_ms() for role in roles}
            took_s, during = _migrate(ground, settings, roles)
        rewritten = [name for name, file in _files(psql).items() if files.get(name, file) != file]
    ground.tell(f"rewritten tables: {', '.join(rewritten) or 'none'}")
    yield Figure(f"migrate, {rows:,} orders", took_s, "s")
    for name, slowest in before.items():
        allowed = f"before + {_ALLOWED_MS:g}"
        yield Figure(f"slowest {name}, before", slowest, "ms")
        yield Figure(f"slowest {name}, migrating", during[name], "ms", slowest + _ALLOWED_MS, allowed, at_most=1.0)


@contextlib.contextmanager
def _fresh(ground: Ground) -> Iterator[Settings]:
    drop = f'DROP DATABASE IF EXISTS "{_NAME}" WITH (FORCE)'.encode()
    with psycopg.connect(database.conninfo(ground.settings), autocommit=True) as maintenance:
        maintenance.execute(drop)  # left by a run that was killed
        maintenance.execute(f'CREATE DATABASE "{_NAME}"'.encode())
        try:
            yield replace(ground.settings, database_url=make_conninfo(ground.settings.database_url, dbname=_NAME))
        finally:
            maintenance.execute(drop)


def _fill(ground: Ground, psql: psycopg.Connection, rows: int) -> None:
    parameters = {"topic": ground.settings.topic, "payload": bytes(140)}
    for first in range(0, rows, _FILLED_AT_ONCE):
        if first % (10 * _FILLED_AT_ONCE) == 0:
            ground.tell(f"{rows:,} finished orders of the first schema: {first:,}")
        some = min(_FILLED_AT_ONCE, rows - first)
        psql.execute(bench_queries["fill_orders"], {**parameters, "orders": some})
    psql.execute("VACUUM ANALYZE")
    # Write the filled rows to disk now, not during the measurement. This user may lack the right to do so.
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        psql.execute("CHECKPOINT")
    psql.execute(bench_queries["number_events"])


def _files(psql: psycopg.Connection) -> Mapping[str, int]:
    """Return the file of each table, which changes if the table is rewritten."""
    return dict(psql.execute(bench_queries["table_files"]).fetchall())


class _Role(threading.Thread):
    """Runs a statement repeatedly, and records the slowest run."""

    def __init__(self, settings: Settings, name: str, statement: str) -> None:
        super().__init__(name=name, daemon=True)
        self._settings = settings
        self._statement = statement.encode()
        self._over = threading.Event()
        self._times: list[float] = []
        self._error: psycopg.Error | None = None

    def run(self) -> None:
        try:
            with psycopg.connect(database.conninfo(self._settings), autocommit=True) as connection:
                while not self._over.wait(_PAUSE_S):
                    began = time.monotonic()
                    connection.execute(self._statement)
                    self._times.append(time.monotonic() - began)
        except psycopg.Error as error:
            self._error = error

    def slowest_ms(self) -> float:
        """Return the milliseconds of the slowest run since the last call. Raises BrewError if a statement failed."""
        if self._error:
            raise BrewError(f"{self.name} failed: {str(self._error).splitlines()[0]}")
        times, self._times = self._times, []
        return 1000 * max(times, default=0.0)

    def end(self) -> None:
        """Stop after the current statement."""
        self._over.set()
        self.join()


@contextlib.contextmanager
def _loaded(settings: Settings) -> Iterator[list[_Role]]:
    roles = [_Role(settings, name, statement) for name, statement in _ROLES.items()]
    for role in roles:
        role.start()
    try:
        yield roles
    finally:
        for role in roles:
            role.end()


def _migrate(ground: Ground, settings: Settings, roles: Sequence[_Role]) -> tuple[float, Mapping[str, float]]:
    """Run `db migrate`, and tell each of its steps together with the slowest statement meanwhile.

    Returns its seconds, and the milliseconds of each role's slowest statement.
    """
    slowest = {role.name: 0.0 for role in roles}

    def since_last_step() -> float:
        step = {role.name: role.slowest_ms() for role in roles}
        slowest.update({name: max(slowest[name], taken) for name, taken in step.items()})
        return max(step.values())

    command = [sys.executable, "-P", "-m", "brewctl", "db", "migrate"]
    env = {**os.environ, **environment(settings)}
    began = time.monotonic()
    with subprocess.Popen(  # noqa: S603
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said = line.rstrip()
            ground.tell(f"{said}; slowest statement meanwhile {since_last_step():.0f} ms")
    if process.returncode:
        raise BrewError(f"db migrate ended with {process.returncode}: {said}")
    took_s = time.monotonic() - began
    since_last_step()
    return took_s, slowest
