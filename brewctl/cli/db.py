"""`brewctl db …`: create, migrate and clean up the tables."""

import functools
from collections.abc import Callable
from typing import Annotated

import typer

from brewctl import config
from brewctl.cli import db_migrate, grants, options, output, retention
from brewctl.cli.setup import when_there
from brewctl.errors import BrewError, UsageError


def init(
    downstreams: Annotated[
        list[str] | None,
        typer.Argument(help="Downstreams whose tables to create.", metavar="[MODULE:NAME]…", show_default=False),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Empty all tables too. Ids are not restarted.")] = False,
    print_sql: Annotated[bool, typer.Option("--print-sql", help="Print the schema, without connecting.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the group over from the downstream that has registered it.")
    ] = False,
    app_dir: options.AppDir = "",
    yes: options.Yes = False,
    wait: options.Wait = 0,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Create the tables, columns and indexes that are missing.

    Roles may run meanwhile. If nothing is missing, nothing is locked.

    With MODULE:NAME it creates the tables of that downstream, by its `schema`, and the inbox's tables beside them: in
    BREW_<GROUP>_DATABASE_URL if that is set, else in the story's database. It registers the group for the downstream.
    """
    if (reset or print_sql) and downstreams:
        raise UsageError("--reset and --print-sql are of the story's tables", hint="leave MODULE:NAME out")
    if take_over and not downstreams:
        raise UsageError("--take-over needs the MODULE:NAME that is to have its group")
    if print_sql:
        from brewctl.sql import migrations

        output.emit("\n".join(migrations.values()).rstrip())
        return
    settings = options.settings(database_url=database_url)
    if downstreams:
        _init_downstreams(settings, downstreams, app_dir, wait, take_over=take_over)
        return
    _init_story(settings, wait, reset=reset, yes=yes)


def _init_story(settings: config.Settings, wait_s: float, *, reset: bool, yes: bool) -> None:
    """Create the tables in the story's database, and in the databases of its own downstreams.

    If one database is away, the tables in the others are created nevertheless.
    """
    from brewctl.delivery import database, registry
    from brewctl.delivery.schema import registration

    own = {full: registration.home(settings, registry.find(full), full) for full in registration.apart(settings)}
    if reset:
        places = [database.place(each.database_url) for each in (settings, *own.values())]
        named = ("database_url", *(each.variable for each in settings.own_databases))
        mine = options.is_sandbox(settings.configured, *named)
        options.confirm_destruction(f"every order in {' and '.join(places)}", mine=mine, yes=yes)

    def story() -> config.Settings:
        with database.connect(settings) as connection:
            registration.initialize_story(settings, connection, reset=reset, tell=_tell)
        return settings

    parts: list[Callable[[], config.Settings]] = [story]
    parts += [functools.partial(registration.initialize_apart, settings, full, reset=reset, tell=_tell) for full in own]
    failed: list[BrewError] = []
    for part in parts:
        try:
            made = when_there(part, wait_s)
        except BrewError as error:
            failed.append(error)
        else:
            output.emit(f"tables are {'empty' if reset else 'ready'} in {database.place(made.database_url)}")
    for another in failed[1:]:
        output.note(output.plain(f"brewctl: {another}"))
    if failed:
        raise failed[0]


def _init_downstreams(
    settings: config.Settings, names: list[str], app_dir: str, wait_s: float, *, take_over: bool
) -> None:
    from brewctl.delivery import database, registry
    from brewctl.delivery.schema import registration

    found = {name: registry.find(name, app_dir) for name in names}  # find all before the first table is created
    for name, downstream in found.items():
        make = functools.partial(registration.initialize, settings, downstream, registry.full_name(name))
        own = when_there(functools.partial(make, take_over=take_over, tell=_tell), wait_s)
        output.emit(f"tables of {name} are ready in {database.place(own.database_url)}, group {downstream.group}")
    output.note(f"next: brewctl start {' '.join(names)}")


def _tell(text: str) -> None:
    output.note(output.plain(f"db init {text}"))


def register(app: typer.Typer) -> None:
    """Add the commands of this module, and of those beside it that belong to `brewctl db`."""
    db = typer.Typer(help="Create, migrate and clean up the tables.", no_args_is_help=True)
    db.command(epilog="Example: brewctl db init --print-sql | psql")(init)
    db.command(epilog="Example: brewctl db status --json")(db_migrate.status)
    db.command(epilog="Example: brewctl db migrate --wait forever")(db_migrate.migrate)
    db.command(epilog="Example: brewctl db plan | psql")(db_migrate.plan)
    db.command("retention", epilog="Example: brewctl db retention --dry-run")(retention.retention)
    db.command("grants", epilog="Example: brewctl db grants | psql")(grants.database)
    db.callback()(lambda: None)
    app.add_typer(db, name="db")
