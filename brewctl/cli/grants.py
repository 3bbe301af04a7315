"""`brewctl db grants` and `brewctl topic grants`: print or apply the rights of each role."""

import os
from typing import Annotated

import typer

from brewctl.cli import options, output
from brewctl.config import DEFAULT_DOWNSTREAMS, short_name
from brewctl.errors import UsageError

_PREFIX = "brew_"
_Prefix = Annotated[str, typer.Option(help="Prefix of each role's name.", metavar="TEXT")]
_Names = Annotated[
    list[str] | None,
    typer.Argument(help="Downstreams to give rights to.", metavar="[MODULE:NAME]…", show_default=False),
]


def database(
    downstreams: _Names = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply the rights now, in one transaction.")] = False,
    prefix: _Prefix = _PREFIX,
    exclusive: Annotated[
        bool,
        typer.Option(
            "--exclusive",
            help="Let no other user connect, see the schema or create temporary tables.",
        ),
    ] = False,
    app_dir: options.AppDir = "",
    database_url: options.DatabaseUrl = None,
) -> None:
    """Print SQL that gives each role just the rights that it needs.

    The roles can't log in: grant them to your users, as in `GRANT brew_order TO my_login`. Run it again after
    each `brewctl db init`. It revokes rights that are not in the script.

    brew_owner creates and changes the tables; brew_order is for order-service, together with brew_publisher if that
    publishes too; brew_GROUP is for a downstream; brew_reader reads; brew_operator retries, redrives and drops.

    With MODULE:NAME it prints the rights of that downstream, including the tables of its `schema`: in
    BREW_<GROUP>_DATABASE_URL if that is set.
    """
    settings = options.settings(database_url=database_url, downstreams=_all(downstreams, app_dir))
    from brewctl.delivery import database as databases
    from brewctl.delivery.schema import grants

    found = grants.scripts(settings, downstreams or (), prefix=prefix, exclusive=exclusive)
    if apply:
        for home, script in found:
            grants.apply(home, script)
            where = databases.place(home.settings.database_url)
            output.emit(f"rights are given in {where} to {', '.join(script.roles)}")
        output.note(f"next: GRANT {found[0][1].roles[1]} TO the user of each, in psql")
        return
    wanted = [each for each in found if each[0].apart is bool(downstreams and len(found) > 1)]
    if len(wanted) > 1:
        places = " and ".join(databases.place(home.settings.database_url) for home, _ in wanted)
        raise UsageError(f"these downstreams are in {places}", hint="name those of one database at a time")
    for home, _ in () if downstreams else found:
        if home.apart:
            names = " ".join(map(short_name, home.names))
            output.note(f"next: brewctl db grants {names}, for the database of {home.whose}")
    ((home, script),) = wanted
    output.emit(f"-- For {databases.place(home.settings.database_url)}, as its owner or a superuser.\nBEGIN;\n")
    output.emit(f"{script.text}\nCOMMIT;")


def _all(names: list[str] | None, app_dir: str) -> list[str] | None:
    """Return the configured downstreams and these; None if `names` is empty."""
    if not names:
        return None
    from brewctl.delivery import registry

    if app_dir:
        os.environ["BREW_APP_DIR"] = app_dir  # the configured downstreams are imported from there too
    for name in names:
        registry.find(name)
    return [*dict.fromkeys([*(options.configured_downstreams() or DEFAULT_DOWNSTREAMS), *names])]


def topic(
    apply: Annotated[
        bool, typer.Option("--apply", help="Apply the rights now, as one of Kafka's super users.")
    ] = False,
    prefix: _Prefix = _PREFIX,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Print the commands that give each user of Kafka just what its role needs.

    The users have the names of the roles of `brewctl db grants`: brew_order, brew_publisher, brew_GROUP, brew_reader,
    brew_operator, brew_owner. They must exist in Kafka, with passwords or certificates; this creates none.

    It revokes no rights, neither of other users nor of these.
    """
    settings = options.settings(brokers=brokers, topic=topic, downstreams=downstream)
    from brewctl.delivery.schema.grants import check_prefix
    from brewctl.delivery.topics import acls

    check_prefix(prefix)
    if apply:
        users = acls.apply(settings, prefix=prefix)
        output.emit(f"rights to topic {settings.topic} are given to {users} users, {prefix}…")
        return
    output.emit(acls.script(settings, prefix=prefix))
