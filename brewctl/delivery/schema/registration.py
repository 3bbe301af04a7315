"""Prepares a downstream's database: makes the inbox's tables and its own, and registers its name for its group.

BREW_<GROUP>_DATABASE_URL, or the story's database:  processed_events and the other tables of the inbox
                                                     downstreams: which module a group (consumer) belongs to
                                                     the tables of the downstream's own `schema`
"""

import contextlib
from dataclasses import replace
from pathlib import Path

import psycopg

from brewctl.config import DEFAULT_DOWNSTREAMS, Settings, own_database_variable
from brewctl.delivery import database, registry
from brewctl.delivery.database import BoundedConnection, table_locks
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import parts, setup
from brewctl.errors import BrewError, NotYetError, UsageError
from brewctl.security import DatabaseSecurity, Secret
from brewctl.sql import queries


def home(settings: Settings, downstream: Downstream, name: str) -> Settings:
    """Return the settings with the database of this downstream as their database.

    Raises UsageError where its variable holds no PostgreSQL URL.
    """
    command = "brewctl db init" if registry.is_own(name) else f"brewctl db init {name}"
    secret = _own(settings, downstream.group)
    url = secret.read() if secret else ""
    if not secret or url == settings.database_url:
        return replace(settings, init_command=command)
    try:
        database.place(url)
    except UsageError as error:
        raise UsageError(error.message.replace("BREW_DATABASE_URL", secret.named_by), hint=error.hint) from None
    of_file = Secret(secret.variable, file=secret.file)
    return replace(
        settings,
        database_url=url,
        database_security=DatabaseSecurity(url=of_file),  # the story's password is for the story's database
        database_variable=secret.named_by,
        init_command=command,
    )


def _own(settings: Settings, group: str) -> Secret | None:
    variable = own_database_variable(group)
    return next((each for each in settings.own_databases if each.variable == variable), None)


def tables(settings: Settings, own: Settings, downstream: Downstream) -> frozenset[str] | None:
    """Return the tables of the schema that a downstream's database needs; None: all."""
    if own.database_url == settings.database_url:
        return story_tables(settings)
    return parts.INBOX_TABLES | set(downstream.tables)


def story_tables(settings: Settings) -> frozenset[str] | None:
    """Return the tables and functions of the schema that the story's database needs; None: all.

    The effects of shipped downstreams with a database of their own are not needed there.
    """
    if not settings.own_databases:
        return None
    elsewhere = {table for full in apart(settings) for table in registry.find(full).tables}
    return frozenset(part.table for part in parts.PARTS) - elsewhere if elsewhere else None


def require_story(settings: Settings, connection: BoundedConnection, *, reading: bool = False) -> None:
    """Raise NotYetError where the story's database lacks a table that roles need, or, with `reading`, a query."""
    setup.require(connection, reading=reading, tables=story_tables(settings))


def apart(settings: Settings) -> list[str]:
    """Return the names of shipped downstreams with a database of their own. Raises UsageError for a malformed URL."""
    if not settings.own_databases:
        return []
    return [
        full
        for full in DEFAULT_DOWNSTREAMS
        if home(settings, registry.find(full), full).database_url != settings.database_url
    ]


def check(settings: Settings, downstream: Downstream, name: str) -> None:
    """Raise BrewError where a downstream's tables are missing, or another downstream has its group."""
    own = home(settings, downstream, name)
    is_own = registry.is_own(name)
    if is_own and own.database_url == settings.database_url:  # other checks look for the story's tables
        return
    with database.connect(own) as connection:
        setup.require(connection, tables=tables(settings, own, downstream), init_command=own.init_command)
        if is_own:  # no other downstream can take a shipped one's group
            return
        holder = _holder(connection, downstream.group)
    if holder is None:
        raise NotYetError(f"downstream {name} has no tables yet", hint=f"run `{own.init_command}`")
    if holder != name:
        raise _taken(downstream.group, holder, name)
    if own.database_url != settings.database_url:
        _check_story(settings, downstream.group, name)


def initialize(
    settings: Settings, downstream: Downstream, name: str, *, take_over: bool, tell: table_locks.Tell
) -> Settings:
    """Make a downstream's missing tables while roles work, and register its name; return its database's settings.

    Raises BrewError where its `schema` is refused, or, without `take_over`, another downstream has its group: then no
    table of its `schema` was made.
    """
    own = home(settings, downstream, name)
    text = schema_text(downstream)
    apart = own.database_url != settings.database_url
    if apart and not take_over:
        _check_story(settings, downstream.group, name)
    with database.connect(own) as connection:
        setup.initialize(connection, tell=tell, tables=tables(settings, own, downstream))
        _apply(connection, downstream, name, text, take_over=take_over)
    if apart:
        _register_in_story(settings, downstream.group, name, tell)
    return own


def initialize_all(
    settings: Settings,
    connection: BoundedConnection,
    *,
    reset: bool = False,
    tell: table_locks.Tell = table_locks.nobody,
) -> None:
    """Make the tables of the story's database, and of shipped downstreams in databases of their own.

    `connection`: to the story's. `reset` also empties the tables. Raises what `setup.initialize` raises.
    """
    initialize_story(settings, connection, reset=reset, tell=tell)
    for full in apart(settings):
        initialize_apart(settings, full, reset=reset, tell=tell)


def initialize_story(
    settings: Settings,
    connection: BoundedConnection,
    *,
    reset: bool = False,
    tell: table_locks.Tell = table_locks.nobody,
) -> None:
    """Make the tables of the story's database, and register the shipped downstreams; `reset` also empties them."""
    needed = story_tables(settings)
    lacking = setup.missing_tables(connection, tables=needed)
    setup.initialize(connection, reset=reset, tell=tell, tables=needed)
    # Only where tables were missing: with a complete schema nothing is locked.
    if lacking:
        register_own(connection)


def initialize_apart(
    settings: Settings, full: str, *, reset: bool = False, tell: table_locks.Tell = table_locks.nobody
) -> Settings:
    """Make the tables of a shipped downstream in its own database; return that database's settings.

    `reset` also empties them, with the inbox's, which other downstreams may share.
    """
    downstream = registry.find(full)
    own = initialize(settings, downstream, full, take_over=False, tell=tell)
    if reset:
        with database.connect(own) as connection:
            setup.initialize(connection, reset=True, tell=tell, tables=tables(settings, own, downstream))
    return own


def register_own(connection: BoundedConnection) -> None:
    """Register the shipped downstreams, whose tables are part of the schema."""
    for full in DEFAULT_DOWNSTREAMS:
        connection.execute(queries["register_downstream"], {"consumer": registry.find(full).group, "name": full})


def schema_text(downstream: Downstream) -> str:
    """Return a downstream's `schema` as SQL, read from its file where it names one. Raises UsageError."""
    text = downstream.schema
    if not text.endswith(".sql") or len(text.split()) != 1:
        return text
    try:
        return Path(downstream.folder, text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not utf-8"
        where = Path(downstream.folder, text)
        hint = f"it is looked for beside the module: {where}"
        raise UsageError(f"downstream {downstream.group}: schema {text} can't be read ({why})", hint=hint) from None


def _apply(connection: BoundedConnection, downstream: Downstream, name: str, text: str, *, take_over: bool) -> None:
    """Run a downstream's schema and register its name, in one transaction, one downstream at a time.

    A statement waits only schema_lock_s at a time for a table, because statements of roles wait behind it.
    """
    names = {"consumer": downstream.group, "name": name}

    def attempt() -> bool:
        with table_locks.bounded(connection):
            connection.execute(queries["lock_schema"])
            holder = _holder(connection, downstream.group)
            if holder not in {None, name} and not take_over:
                raise _taken(downstream.group, holder or "", name)
            if text.strip(" \t\r\n;"):
                connection.execute(queries["act_as_owner"])
                # psycopg's own cursor without parameters sends several statements at once.
                psycopg.Cursor(connection).execute(text.encode())
            connection.execute(queries["register_downstream"], names)
        return True

    def in_the_way() -> BrewError:
        message = f"downstream {downstream.group}: a table of its schema is in use"
        return BrewError(message, hint="`brewctl doctor` names the session; run this again when it has ended")

    try:
        table_locks.until_free(connection, attempt, in_the_way)
    except (psycopg.errors.QueryCanceled, *database.UNAVAILABLE):
        raise
    except psycopg.Error as error:
        said = error.diag.message_primary or str(error).splitlines()[0]
        line = _line(text, error.diag.statement_position)
        where = f" (line {line})" if line else ""
        message = f"downstream {downstream.group}: postgres refused its schema{where}: {said}"
        raise BrewError(message, hint=f"mend `schema` of {name}; nothing of it was made") from error


def _check_story(settings: Settings, group: str, name: str) -> None:
    """Raise BrewError where the story's database has the group registered for another downstream, if it can be reached.

    Whatever database each has, two downstreams of one group would share the topic's partitions: each would miss the
    other's events.
    """
    holder = None
    with contextlib.suppress(BrewError), database.connect(settings.impatient) as connection:
        holder = _holder(connection, group)
    if holder not in {None, name}:
        raise _taken(group, holder or "", name)


def _register_in_story(settings: Settings, group: str, name: str, tell: table_locks.Tell) -> None:
    try:
        with database.connect(settings.impatient) as connection:
            connection.execute(queries["register_downstream"], {"consumer": group, "name": name})
    except BrewError as error:
        tell(f"could not register the group {group} in the story's database ({error.message})")


def _line(text: str, position: str | None) -> int:
    return text.count("\n", 0, int(position) - 1) + 1 if position and "\n" in text.strip() else 0


def _holder(connection: BoundedConnection, group: str) -> str | None:
    found = connection.execute(queries["downstream_name"], {"consumer": group}).fetchone()
    return str(found[0]) if found else None


def _taken(group: str, holder: str, name: str) -> BrewError:
    hint = f"give {name} another group; if it is the same one under a new name, `brewctl db init --take-over {name}`"
    return BrewError(f"the group {group} is taken by {holder}", hint=hint)
