"""All databases of the system, as chaos works on them: the story's, and those that downstreams have of their own."""

from collections.abc import Callable
from datetime import datetime

from brewctl import overview
from brewctl.delivery import database, registry
from brewctl.delivery.schema import registration
from brewctl.delivery.schema.homes import Databases
from brewctl.overview import effects
from brewctl.sql import queries


def at_each(databases: Databases, do: Callable[[database.Connection], None]) -> None:
    """Do something in every database in which a downstream has its effects, and in the story's."""
    for home in databases.homes:
        with databases.to(home) as connection:
            do(connection)


def empty_further(databases: Databases) -> None:
    """Make the tables of the downstreams beside the story's own, and empty those that hold their effects."""
    settings = databases.settings
    for name in settings.downstreams:
        if registry.is_own(name):
            continue
        downstream = registry.find(name)
        registration.initialize(settings, downstream, name, take_over=False, tell=lambda _text: None)
        with databases.to(databases.home(downstream.group)) as connection:
            for table in effects.tables(connection, downstream):
                connection.execute(f"TRUNCATE {table}")  # quoted
    overview.flow(databases, registry.configured(settings))  # else a `done` query that fails is no sample, for ever


def slowest_s(databases: Databases) -> float:
    """Return the seconds from the acceptance of an order to the last of its effects, at most."""
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
