"""`brewctl db …` and `brewctl topic …`: what the roles need to be there."""

from typing import Annotated

import typer

from brewctl.cli import options, output


def init(
    reset: Annotated[bool, typer.Option("--reset", help="Empty every table too. Identities go on.")] = False,
    print_sql: Annotated[bool, typer.Option("--print-sql", help="Print the schema; connect to nothing.")] = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Create the tables, columns and indexes that are missing.

    Roles work on meanwhile: where all is there, nothing is locked.
    """
    if print_sql:
        from brewctl.sql import schema

        output.emit(schema.rstrip())
        return
    settings = options.settings(database_url=database_url)
    from brewctl.delivery import database

    place = database.place(settings.database_url)
    if reset:
        options.confirm_destruction(
            f"every order in {place}", mine=options.is_sandbox(settings.configured, "database_url"), yes=yes
        )
    with database.connect(settings) as connection:
        database.initialize(connection, reset=reset, tell=lambda text: output.note(output.plain(f"db init {text}")))
    output.emit(f"tables are {'empty' if reset else 'ready'} in {place}")


def create(
    recreate: Annotated[
        bool, typer.Option("--recreate", help="Delete the topics, and the groups' offsets of them, first.")
    ] = False,
    yes: options.Yes = False,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Create the topic and its dead-letter topic.

    6 partitions, 3 replicas, 2 of them in sync.
    """
    settings = options.settings(brokers=brokers, topic=topic, downstreams=downstream)
    from brewctl.delivery import topics

    if recreate:
        what = f"topic {settings.topic} with its groups' offsets on {','.join(settings.brokers)}"
        options.confirm_destruction(what, mine=options.is_sandbox(settings.configured, "brokers"), yes=yes)
    created = topics.create(settings, recreate=recreate)
    for name in (settings.topic, settings.dead_letter_topic):
        output.emit(f"topic {name} {'created' if name in created else 'was there already'}")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    db = typer.Typer(help="The tables.", no_args_is_help=True)
    db.command(epilog="Example: brewctl db init --print-sql | psql")(init)
    db.callback()(lambda: None)
    app.add_typer(db, name="db")
    topic = typer.Typer(help="The topic.", no_args_is_help=True)
    topic.command(epilog="Example: brewctl topic create --recreate")(create)
    topic.callback()(lambda: None)
    app.add_typer(topic, name="topic")
