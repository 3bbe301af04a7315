"""The databases of single downstreams: whether they answer, have all tables, and hold parked or waiting events."""

from collections.abc import Iterator

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.schema import homes, registration
from brewctl.delivery.schema.homes import Home
from brewctl.doctor import postgres
from brewctl.doctor.finding import Finding, failed, ok
from brewctl.errors import BrewError
from brewctl.sql import doctor_queries
from brewctl.verify import done


def check(settings: Settings) -> Iterator[Finding]:
    """Check each database. A failure in one does not keep the others from being checked.

    Raises UsageError where a downstream can't be found, or a variable holds no PostgreSQL URL.
    """
    for home in homes.apart(settings):
        name = f"database-{'-'.join(home.groups)}"
        try:
            yield from _check(settings, home, name)
        except BrewError as error:
            yield failed(name, error)


def _check(settings: Settings, home: Home, name: str) -> Iterator[Finding]:
    with homes.connect(home, name="brewctl doctor") as connection:
        for downstream, full_name in zip(home.downstreams, home.names, strict=True):
            registration.check(settings, downstream, full_name)
            if downstream.done:
                with done.explained(downstream, init_command=home.settings.init_command):
                    done.look(connection, downstream)
        yield ok(name, f"{database.place(home.settings.database_url)} has all tables of {home.whose}")
        rows = connection.execute(doctor_queries["parked"]).fetchall()
        waiting = [row for row in rows if row[0] in home.groups]
        behind = [row for row in connection.execute(doctor_queries["waiting"]) if row[0] in home.groups]
    yield from postgres.parked(waiting) if waiting else ()
    yield from postgres.waiting(behind)
