"""The session that a role gets from PostgreSQL: a pooler in between, the encoding, the settings in force."""

from collections.abc import Iterator
from urllib.parse import quote

from brewctl.delivery.database import BoundedConnection
from brewctl.doctor.finding import Finding, ok, warn
from brewctl.sql import doctor_queries

_DEFAULT_PATH = '"$user", public'


def check(connection: BoundedConnection) -> Iterator[Finding]:
    """Check this connection's session, which asks PostgreSQL for the same settings as the session of a role."""
    yield _pooler(connection)
    names = [*connection.session.bounds(), "jit", "server_encoding"]
    asked = connection.execute(doctor_queries["settings"], {"names": names}).fetchall()
    found = {name: value for name, value, _ in asked}
    yield _encoding(found["server_encoding"])
    yield from _in_force(found, connection.session.bounds())
    row = connection.execute(doctor_queries["search_path"]).fetchone()
    if row and "search_path" not in connection.session.given_settings():
        yield from _search_path(*row)


def _pooler(connection: BoundedConnection) -> Finding:
    if not connection.pooled:
        return ok("pooler", "none: postgres itself answers")
    found = "one, such as PgBouncer, stands between: each transaction brings its own bounds"
    return ok("pooler", found)


def _encoding(name: str) -> Finding:
    if name == "UTF8":
        return ok("encoding", name)
    found = f"{name}: an order with a character that it does not have is refused"
    if name == "SQL_ASCII":
        found = f"{name}: text that other programs write in another encoding than UTF-8 can't be read"
    mend = "in psql: `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0;`, and name it in BREW_DATABASE_URL"
    return warn("encoding", found, mend=mend)


def _in_force(found: dict[str, str], bounds: dict[str, int]) -> Iterator[Finding]:
    """Warn of settings that differ from those that roles ask for. Only options in the URL can override those."""
    well = True
    for name, asked_ms in bounds.items():
        value_ms = int(found[name])
        if asked_ms and not 0 < value_ms <= asked_ms:
            well = False
            said = f"{value_ms} ms" if value_ms else "off"
            yield warn(
                name, f"{said}: a role's own bound is not in force, and hanging statements do not end", mend=_out(name)
            )
    if found["jit"] == "on":
        well = False
        yield warn("jit", "on: with many rows waiting, each fetch of the publisher is compiled anew", mend=_out("jit"))
    if well:
        yield ok("session", "bounds and JIT are as the roles ask")


def _out(name: str) -> str:
    return f"take {name} out of the options in BREW_DATABASE_URL"


def _search_path(path: str, whose: str) -> Iterator[Finding]:
    if path.replace(" ", "") != _DEFAULT_PATH.replace(" ", ""):
        found = f"the {whose} says {path}: brewctl keeps to {_DEFAULT_PATH}, so that all roles share the same tables"
        option = quote(f"-csearch_path={path.replace(' ', '')}", safe="-")
        mend = f"if the tables are there, add `?options={option}` to BREW_DATABASE_URL"
        yield warn("search_path", found, mend=mend)
