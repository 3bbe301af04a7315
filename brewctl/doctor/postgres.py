"""PostgreSQL: whether it answers, has our schema, keeps acknowledged commits, and has connections left for roles."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Connection
from brewctl.delivery.schema import homes, registration, versions
from brewctl.delivery.schema.homes import Home
from brewctl.delivery.schema.parts import Kind
from brewctl.delivery.schema.versions import MigrationState
from brewctl.doctor import clocks, dedup, identity, in_force, partitions, replicas, sessions
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.errors import UsageError
from brewctl.sql import doctor_queries

# The first version with all functions that we call (gen_random_uuid); the oldest one that is still maintained.
_NEEDED, _MAINTAINED = 13, 14
# What is lost or damaged where the setting is off.
_DURABLE = {
    "fsync": "a crash of the machine may damage every table",
    "full_page_writes": "a crash of the machine may leave half-written pages",
    "synchronous_commit": "a crash may lose orders that were acknowledged",
}
_ASKED = (
    *_DURABLE,
    "server_version",
    "server_version_num",
    "transaction_read_only",
    "default_transaction_read_only",
    "default_transaction_isolation",
    "max_connections",
    "superuser_reserved_connections",
)
# Above this age an unpublished row, or a waiting event, is worth a warning.
_OLD_S = 60.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the server: its value, and its source, as pg_settings names both."""

    value: str
    source: str


def check(settings: Settings) -> Iterator[Finding]:
    """Check PostgreSQL. Raises UnreachableError, BrewError."""
    where = database.place(settings.database_url)
    with database.connect(settings, name="brewctl doctor") as connection:
        asked = connection.execute(doctor_queries["settings"], {"names": list(_ASKED)})
        found = {name: Setting(value, source) for name, value, source in asked}
        yield judge_version(found, where)
        yield from in_force.check(connection)
        standing = versions.standing(connection, registration.story_tables(settings))
        lacking = [str(part) for part in standing.lacking if part.kind is not Kind.LEFTOVER]
        yield schema_finding(standing)
        name = connection.info.dbname
        for each in _DURABLE:
            yield judge_durable(each, found[each], name)
        yield judge_writable(found, name)
        (used,) = connection.execute(doctor_queries["connections"]).fetchone() or (0,)
        yield judge_connections(found, used, needed=settings.limits.order_connections)
        yield judge_isolation(found["default_transaction_isolation"], sessions.isolation_of_others(settings), name)
        yield sessions.open_for_long(connection)
        if not lacking:
            yield from judge_outbox(*connection.execute(doctor_queries["outbox"]).fetchone() or (0, None))
            apart, last = _apart(settings), partitions.last_row(connection)
            elsewhere = [group for home in apart for group in home.groups]
            for query, judge in (("parked", parked), ("waiting", waiting)):
                rows = connection.execute(doctor_queries[query]).fetchall()
                yield from judge([row for row in rows if row[0] not in elsewhere])
            own = tuple(dedup.look(apart, last))
            yield from identity.check(connection, own)
            yield from partitions.check(connection, last)
            yield from dedup.check(own)
            yield from replicas.check(connection)
        yield clocks.judge("clock", "postgres", *_read_clocks(connection))


def _apart(settings: Settings) -> Sequence[Home]:
    """Return the databases of single downstreams; none where a downstream can't be found: `elsewhere` reports that."""
    try:
        return homes.apart(settings)
    except UsageError:
        return ()


def judge_version(settings: Mapping[str, Setting], where: str) -> Finding:
    """Judge the server's version."""
    major = int(settings["server_version_num"].value) // 10_000
    found = f"{settings['server_version'].value} at {where}"
    mend = f"upgrade PostgreSQL to {_MAINTAINED} or later"
    if major < _NEEDED:
        return fail("postgres", f"{found}: too old for our statements", mend=mend)
    if major < _MAINTAINED:
        return warn("postgres", f"{found}: no longer maintained", mend=mend)
    return ok("postgres", found)


def schema_finding(standing: MigrationState) -> Finding:
    """Judge whether the story's database has all migrations."""
    lacking = [str(part) for part in standing.lacking if part.kind is not Kind.LEFTOVER]
    mend = f"run `{versions.command(lacking)}`"
    if lacking:
        found = f"missing: {', '.join(lacking)} (version {standing.version} of {versions.PROGRAM})"
        return fail("schema", found, mend=mend)
    if standing.is_newer:
        found = f"version {standing.version}: a newer program has migrated it; this one knows {versions.PROGRAM}"
        return warn("schema", found, mend="install that program's version when you can")
    if standing.lacking:
        left = ", ".join(sorted(part.name for part in standing.lacking))
        found = f"{left} belongs to an older version, and slows publishing down"
        return warn("schema", found, mend=mend)
    return ok("schema", f"version {versions.PROGRAM}: all tables and indexes of this version are there")


def judge_durable(name: str, setting: Setting, database_name: str) -> Finding:
    """Fail where a setting is off that protects commits from being lost."""
    if setting.value == "off":
        return fail(name, f"off: {_DURABLE[name]}", mend=_switch(name, setting, database_name, to="on"))
    return ok(name, setting.value)


def judge_writable(settings: Mapping[str, Setting], database_name: str) -> Finding:
    """Judge whether sessions may write."""
    if settings["transaction_read_only"].value == "off":
        return ok("writable", "takes writes")
    default = settings["default_transaction_read_only"]
    if default.value == "on":
        mend = _switch("default_transaction_read_only", default, database_name, to="off")
        return fail("writable", "takes no writes: default_transaction_read_only is on", mend=mend)
    return fail("writable", "takes no writes: it is a standby", mend="set BREW_DATABASE_URL to the primary")


def _switch(name: str, setting: Setting, database_name: str, *, to: str) -> str:
    """Say how to change a setting at its source: a setting nearer to the session overrides the others."""
    match setting.source:
        case "command line":
            return f"start postgres without `-c {name}={setting.value}`"
        case "client" | "environment variable":
            return f"take {name} out of the options in BREW_DATABASE_URL"
        case "database":
            return f'in psql: `ALTER DATABASE "{database_name}" RESET {name};`'
        case "user" | "database user" as source:
            scope = f' IN DATABASE "{database_name}"' if source == "database user" else ""
            return f"in psql: `ALTER ROLE CURRENT_USER{scope} RESET {name};`"
        case _:
            return f"in psql: `ALTER SYSTEM SET {name} = {to}; SELECT pg_reload_conf();`"


def judge_connections(settings: Mapping[str, Setting], used: int, *, needed: int) -> Finding:
    """Judge whether enough connections are left for one more order-service."""
    allowed = int(settings["max_connections"].value) - int(settings["superuser_reserved_connections"].value)
    found = f"{used} of {allowed} in use"
    if allowed - used >= needed:
        return ok("max_connections", found)
    mend = f"in psql: `ALTER SYSTEM SET max_connections = {2 * allowed};`, then restart postgres"
    if settings["max_connections"].source == "command line":
        mend = f"start postgres with `-c max_connections={2 * allowed}`"
    return warn("max_connections", f"{found}: one more order-service may need {needed}", mend=mend)


def judge_isolation(ours: Setting, others: tuple[str, str] | None, database_name: str) -> Finding:
    """Judge the isolation level of our sessions, and that of sessions that ask for none."""
    plain = Setting(*others) if others else ours
    for setting, judge, what in (
        (ours, fail, ": publishers and consumers fail on concurrent changes"),
        (plain, warn, " by default: other clients' transactions fail on concurrent changes"),
    ):
        if sessions.is_above_read_committed(setting.value):
            mend = _switch("default_transaction_isolation", setting, database_name, to="'read committed'")
            return judge("isolation", setting.value + what, mend=mend)
    return ok("isolation", plain.value)


def judge_outbox(set_aside: int, oldest_s: float | None) -> Iterator[Finding]:
    """Judge the unpublished rows: how many were set aside, and how old the oldest is."""
    late = oldest_s is not None and oldest_s > _OLD_S
    if set_aside:
        found = f"Kafka refused {set_aside} row{'s' if set_aside > 1 else ''}, which were set aside"
        yield warn("outbox", found, mend="see `brewctl outbox list --failed`, then `brewctl outbox retry --all`")
    if late:
        found = f"a row has not been published for {oldest_s:.0f} s"
        yield warn("outbox", found, mend="run `brewctl start order`, and see what its log says of Kafka")
    if not set_aside and not late:
        yield ok("outbox", "all rows are published" if oldest_s is None else "no row has waited long")


def parked(waiting: Sequence[tuple[Any, ...]]) -> Iterator[Finding]:
    """Judge parked events; a row per consumer: its group, how many events, of how many keys."""
    for group, events, keys in waiting:
        several = "s" if keys > 1 else ""
        which = f"{events} event{'s' if events > 1 else ''} of {keys} key{several}"
        found = f"{group} has parked {which}, whose effect failed"
        yield warn("parked", found, mend=f"see `brewctl dlq list --group {group}`, then `brewctl dlq redrive`")
    if not waiting:
        yield ok("parked", "no event waits to be redriven")


def waiting(rows: Sequence[tuple[Any, ...]]) -> Iterator[Finding]:
    """Judge events that wait for a lane; a row per consumer: group, count, oldest age, failed before, a failure."""
    for group, events, oldest_s, failing, failure in rows:
        found = f"{group} has {events} event{'s' if events > 1 else ''} waiting for its handler"
        found += f", the oldest for {oldest_s:.0f} s"
        if failing:
            found += f"; {failing} failed before, such as: {failure}"
        if oldest_s > _OLD_S:
            yield warn("waiting", found, mend=f"see in `brewctl top` whether nodes of {group} run, and read their logs")
        else:
            yield ok("waiting", found)


def _read_clocks(connection: Connection) -> tuple[float, float, float]:
    before = time.time()
    (there,) = connection.execute(doctor_queries["clock"]).fetchone() or (before,)
    return before, there, time.time()
