"""What a downstream has in PostgreSQL before it can run: its tables, those of the inbox, and its name.

BREW_<GROUP>_DATABASE_URL, or the story's database:  processed_events and the others of the inbox
                                                     downstreams: whose the consumer's name is
                                                     what the downstream's own `schema` makes
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
    """Return the settings with the database that a downstream of this name has its tables in.

    Raises UsageError where the variable with a database of its own holds no PostgreSQL URL.
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
    """Name the tables of the schema that a downstream's database needs; None: all, as it is the story's too."""
    if own.database_url == settings.database_url:
        return story_tables(settings)
    return parts.INBOX_TABLES | set(downstream.tables)


def story_tables(settings: Settings) -> frozenset[str] | None:
    """Name the tables and functions of the schema that the story's database needs; None: all.

    It needs no effects of the story's own downstreams that have a database of their own.
    """
    if not settings.own_databases:
        return None
    elsewhere = {table for full in apart(settings) for table in registry.find(full).tables}
    return frozenset(part.table for part in parts.PARTS) - elsewhere if elsewhere else None


def require_story(settings: Settings, connection: BoundedConnection, *, reading: bool = False) -> None:
    """Raise BrewError where the story's database lacks what it needs, or, with `reading`, what a query needs."""
    setup.require(connection, reading=reading, tables=story_tables(settings))


def apart(settings: Settings) -> list[str]:
    """Name the story's own downstreams that have a database of their own. Raises UsageError for a URL that is none."""
    if not settings.own_databases:
        return []
    return [
        full
        for full in DEFAULT_DOWNSTREAMS
        if home(settings, registry.find(full), full).database_url != settings.database_url
    ]


def check(settings: Settings, downstream: Downstream, name: str) -> None:
    """Raise BrewError where a downstream with tables of its own has none yet, or its group is another one's."""
    own = home(settings, downstream, name)
    is_own = registry.is_own(name)
    if is_own and own.database_url == settings.database_url:  # the story's tables are looked for by others
        return
    with database.connect(own) as connection:
        setup.require(connection, tables=tables(settings, own, downstream), init_command=own.init_command)
        if is_own:  # its group is nobody else's to take
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
    """Make the tables of a downstream that are missing, and register its name. Returns where they are.

    Beside roles at work. Raises BrewError where its `schema` is refused, or its group is another's, unless
    `take_over`; then nothing of the downstream's own was made.
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
    """Make the tables of the story's database, to which `connection` is, and those of its own downstreams apart.

    `reset` also empties them. Raises what `setup.initialize` raises.
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
    """Make the tables of the story's database, and register whose they are; `reset` also empties them."""
    needed = story_tables(settings)
    lacking = setup.missing_tables(connection, tables=needed)
    setup.initialize(connection, reset=reset, tell=tell, tables=needed)
    # A run before this one may have been ended in the middle; nothing of a complete schema is locked.
    if lacking:
        register_own(connection)


def initialize_apart(
    settings: Settings, full: str, *, reset: bool = False, tell: table_locks.Tell = table_locks.nobody
) -> Settings:
    """Make the tables of one of the story's own downstreams in the database that it has for itself; return where.

    `reset` also empties them, with those of the inbox, which others may share.
    """
    downstream = registry.find(full)
    own = initialize(settings, downstream, full, take_over=False, tell=tell)
    if reset:
        with database.connect(own) as connection:
            setup.initialize(connection, reset=True, tell=tell, tables=tables(settings, own, downstream))
    return own


def register_own(connection: BoundedConnection) -> None:
    """Register the story's own downstreams, whose tables are part of the schema."""
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
    """Run a downstream's schema and write its name, in one transaction, one downstream at a time.

    A statement waits schema_lock_s for a table at a time, for statements of roles wait behind it.
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
                # A cursor of psycopg's own, and no parameters: several statements go in one.
                psycopg.Cursor(connection).execute(text.encode())
            connection.execute(queries["register_downstream"], names)
        return True

    def in_the_way() -> BrewError:
        message = f"downstream {downstream.group}: a table of its schema is in use"
        return BrewError(message, hint="`brewctl doctor` names who holds it; run this again then")

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
    """Refuse a group that the story's database knows as another's, where that can be asked.

    Two downstreams of one group would share its partitions out, and each miss what the other gets, whatever database
    each has.
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
        tell(f"could not tell the story's database whose the group {group} is ({error.message})")


def _line(text: str, position: str | None) -> int:
    return text.count("\n", 0, int(position) - 1) + 1 if position and "\n" in text.strip() else 0


def _holder(connection: BoundedConnection, group: str) -> str | None:
    found = connection.execute(queries["downstream_name"], {"consumer": group}).fetchone()
    return str(found[0]) if found else None


def _taken(group: str, holder: str, name: str) -> BrewError:
    hint = f"give {name} another group; if it is the same one under a new name, `brewctl db init --take-over {name}`"
    return BrewError(f"the group {group} is taken by {holder}", hint=hint)
