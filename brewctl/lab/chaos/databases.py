"""What chaos does in all databases: the story's, and those of single downstreams."""

from collections.abc import Callable
from datetime import datetime

from brewctl import overview
from brewctl.delivery import database, registry
from brewctl.delivery.schema import registration
from brewctl.delivery.schema.homes import Databases
from brewctl.overview import effects
from brewctl.sql import queries


def at_each(databases: Databases, do: Callable[[database.Connection], None]) -> None:
    """Call `do` with a connection to the story's database, then to each downstream's own."""
    for home in databases.homes:
        with databases.to(home) as connection:
            do(connection)


def empty_further(databases: Databases) -> None:
    """Create the tables of the user's own downstreams, and empty those with their effects."""
    settings = databases.settings
    for name in settings.downstreams:
        if registry.is_own(name):
            continue
        downstream = registry.find(name)
        registration.initialize(settings, downstream, name, take_over=False, tell=lambda _text: None)
        with databases.to(databases.home(downstream.group)) as connection:
            for table in effects.tables(connection, downstream):
                connection.execute(f"TRUNCATE {table}")  # quoted
    overview.flow(databases, registry.configured(settings))  # raises if a `done` query fails


def slowest_s(databases: Databases) -> float:
    """Return the longest time in seconds from the acceptance of an order to the last of its effects."""
    groups = {each.group for each in registry.configured(databases.settings)}
    story, *apart = databases.homes
    done: list[tuple[int, datetime]] = []
    for home in apart:
        asked = {"groups": [group for group in home.groups if group in groups]}
        with databases.to(home) as connection:
            done += connection.execute(queries["processed_times"], asked).fetchall()
    found = databases.story.execute(
        queries["slowest_order"],
        {
            "groups": [group for group in story.groups if group in groups],
            "ids": [outbox_id for outbox_id, _ in done],
            "times": [at for _, at in done],
        },
    ).fetchone()
    return float(found[0] or 0.0) if found else 0.0
