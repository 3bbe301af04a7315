"""`brewctl db status`, `db migrate` and `db plan`: the schema version of each database, and its migration."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewctl.cli import options, output
from brewctl.cli.setup import when_there
from brewctl.errors import BrewError, UnreachableError, UsageError

if TYPE_CHECKING:
    from brewctl.delivery.schema.homes import Home
    from brewctl.delivery.schema.versions import MigrationState

# psql must stop at a failed step: the row after it would record the migration as complete.
_FOR_PSQL = "\\set ON_ERROR_STOP on\n"


def status(
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    downstream: options.Downstreams = None,
) -> None:
    """Show the schema version of each database.

    That is the story's database, and those of single downstreams.

    Exit 1 where something is missing, 3 where a server is away. The other databases are shown in any case.
    """
    settings = options.settings(database_url=database_url, downstreams=downstream)
    from brewctl.delivery import database
    from brewctl.delivery.schema import homes, versions

    shown, behind, away = [], [], None
    for home in homes.of(settings):
        place = database.place(home.settings.database_url)
        named: dict[str, object] = {"database": place, "of": home.groups if home.apart else ["story"]}
        try:
            with database.connect(home.settings) as connection:
                found = versions.standing(connection, home.tables)
        except UnreachableError as error:
            away = away or error
            shown.append({**named, "state": "away", "error": error.message})
            lines = [f"{_named(home, place)}: {error.message}"]
        else:
            if found.lacking:
                behind.append(home.settings.init_command if found.is_empty else versions.MIGRATE)
            shown.append({**named, **_described(found)})
            lines = [f"{_named(home, place)}: {_said(found)}", *_missing(found)]
        if not as_json:
            output.emit("\n".join(map(output.plain, lines)))
    if as_json:
        output.emit_json({"program": versions.PROGRAM, "databases": shown})
    if away:
        raise away
    if behind:
        raise BrewError("the schema is behind", hint=f"run `{'` and `'.join(dict.fromkeys(behind))}`")


def migrate(
    wait: options.Wait = 0,
    database_url: options.DatabaseUrl = None,
    downstream: options.Downstreams = None,
) -> None:
    """Bring the tables of each database up to date, while roles run.

    It migrates the story's database, and those of single downstreams. Only one session migrates a database at a
    time; a second one waits, and then finds nothing to do. After an interruption the next run does the
    rest. A database that a newer program has migrated is left as it is.
    """
    settings = options.settings(database_url=database_url, downstreams=downstream)
    from brewctl.delivery.schema import homes

    failed: list[BrewError] = []
    for home in homes.of(settings):
        try:
            when_there(lambda home=home: _migrate(home), wait)  # type: ignore[misc]
        except UnreachableError as error:
            # A database that is away does not keep the others from being migrated.
            message = f"{home.whose}: {error.message}" if home.apart else error.message
            failed.append(UnreachableError(message, hint=error.hint))
    for another in failed[1:]:
        output.note(output.plain(f"brewctl: {another}"))
    if failed:
        raise failed[0]


def _migrate(home: "Home") -> None:
    from brewctl.delivery import database
    from brewctl.delivery.schema import registration, versions

    place = database.place(home.settings.database_url)
    with database.connect(home.settings, name="brewctl db migrate") as connection:
        before = versions.standing(connection, home.tables)
        if home.apart and before.is_empty:
            message = f"{home.whose}: {place} has no tables yet"
            raise BrewError(message, hint=f"run `{home.settings.init_command}`")
        of = f"of {', '.join(home.groups)} " if home.apart else ""
        found = versions.bring_up(
            connection, lambda text: output.note(output.plain(f"db migrate {of}{text}")), home.tables
        )
        # A run before this one may have been interrupted before it registered the groups.
        if before.lacking and not (home.apart or before.is_newer):
            registration.register_own(connection)
    if before.is_newer:
        output.emit(f"{_named(home, place)}: {_said(before)}: nothing to do")
    elif found.is_current:
        by = "" if before.is_current else "left to do, another session did it"
        output.emit(f"{_named(home, place)}: version {versions.PROGRAM}: nothing {by or 'to do'}")
    else:
        done = "mended" if before.version == versions.PROGRAM else f"was {before.version}"
        output.emit(f"{_named(home, place)}: version {versions.PROGRAM} ({done})")


def plan(
    of: Annotated[
        str | None,
        typer.Argument(help="The downstream whose own database to plan for.", metavar="[GROUP]", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Print the whole schema, without connecting.", show_default=False)
    ] = False,
    database_url: options.DatabaseUrl = None,
    downstream: options.Downstreams = None,
) -> None:
    """Print the SQL that `db migrate` would run, and what each step locks.

    Run it with psql as the owner of the tables. If a step does not get its lock in time, psql ends there. Then make a
    new plan, with the remaining steps, and run that.
    """
    if everything and of:
        raise UsageError("--all is for the story's tables", hint=f"leave {of[:80]} out")
    settings = options.settings(database_url=database_url, downstreams=downstream)
    from brewctl.delivery import database
    from brewctl.delivery.schema import migration_plan, partitioning, versions

    if everything:
        output.emit(f"-- The whole schema, for an empty database.\n{_FOR_PSQL}")
        for line in migration_plan.lines(migration_plan.from_nothing(), (), settings.limits):
            output.emit(line)
        return
    home = _home(settings, of)
    place = database.place(home.settings.database_url)
    with database.connect(home.settings) as connection:
        found = versions.standing(connection, home.tables)
        tables = {part.table for part in found.lacking}
        partitions = {table: partitioning.partitions(connection, table) for table in tables}
    output.emit(f"-- {_named(home, place)}: {_said(found)}{': nothing to do' * found.is_current}.")
    if not found.is_current:
        output.emit(_FOR_PSQL)
        for line in migration_plan.lines(found.lacking, found.recorded, settings.limits, partitions):
            output.emit(line)


def _home(settings: Any, group: str | None) -> "Home":
    from brewctl.delivery.schema import homes

    found = homes.of(settings)
    if group is None:
        return found[0]
    for home in found:
        if home.apart and group in home.groups:
            return home
    raise UsageError(f"{group[:80]!r} has no database of its own", hint="leave it out, or see `brewctl db status`")


def _named(home: "Home", place: str) -> str:
    return f"{home.whose}, {place}" if home.apart else place


def _said(found: "MigrationState") -> str:
    """Return a database's version in a few words."""
    from brewctl.delivery.schema import versions

    if found.is_newer:
        said = f"version {found.version}, which a newer program made; this one knows {versions.PROGRAM}"
        return f"{said}, and works there"
    if found.is_empty:
        return "no tables"
    said = f"version {found.version} of {versions.PROGRAM}"
    if not found.lacking and found.unrecorded:
        return f"{said}, not yet written down"
    return said


def _missing(found: "MigrationState") -> Iterator[str]:
    from brewctl import sql
    from brewctl.delivery.schema.parts import Kind

    for number, name in sql.migration_names.items():
        here = [part for part in found.lacking if part.migration == number]
        if missing := [str(part) for part in here if part.kind is not Kind.LEFTOVER]:
            yield f"  {name}: missing {', '.join(missing)}"
        if left := [str(part) for part in here if part.kind is Kind.LEFTOVER]:
            yield f"  {name}: to be dropped {', '.join(left)}"


def _described(found: "MigrationState") -> dict[str, object]:
    state = "newer" if found.is_newer else "empty" if found.is_empty else "behind" if found.lacking else "current"
    return {
        "state": state,
        "version": found.version,
        "recorded": sorted(found.recorded),
        "missing": [{"migration": part.migration, "what": str(part)} for part in found.lacking],
    }
