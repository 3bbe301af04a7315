"""Questions to PostgreSQL: about the outbox, and about the downstreams in each database."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.schema.homes import Home
from brewctl.errors import BrewError
from brewctl.exporter.families import (
    OLDEST_TRANSACTION,
    OUTBOX_OLDEST,
    OUTBOX_ROWS,
    PARKED,
    PARTITIONS,
    PARTITIONS_AHEAD,
    REPLICAS,
    RETENTION_HELD,
    RETENTION_RAN,
    RETENTION_REFUSED,
    WAITING,
    WAITING_OLDEST,
    WATERMARK,
    Sample,
)
from brewctl.exporter.questions import Question
from brewctl.overview.replicas import SILENT_S
from brewctl.sql import exporter_queries

NAME = "brewctl metrics"
# The server's bound for a statement; the client's bound for all answers to one question.
_STATEMENT_MS = 2000
_ANSWER_S = 3.0
_MOST_ROWS = 100_000  # counting a million rows would take about a second
_ROLES = ("order", "publisher")

Ask = Callable[[BoundedConnection], Sequence[Sample]]


def server(home: Home) -> str:
    """Return a database's name for labels: postgres, or postgres-GROUP for a database of downstreams."""
    return f"postgres-{'+'.join(home.groups)}" if home.apart else "postgres"


@contextlib.contextmanager
def opened(home: Home, groups: Sequence[str]) -> Iterator[Sequence[Question]]:
    """Connect to a database, and yield its questions. `groups`: of all downstreams; each is a role with replicas.

    Raises UnreachableError or BrewError, in the block too.
    """
    with database.connect(home.settings, name=NAME) as connection:

        def ping() -> None:
            with database.explained(home.settings), connection.answering_within(_ANSWER_S):
                connection.execute("")

        yield [
            # The other questions may answer from their last answer: only the ping shows that the server is up.
            Question(server(home), "ping", ping, always=True),
            *(
                Question(server(home), name, lambda ask=ask: bounded(home.settings, connection, ask))  # type: ignore[misc]
                for name, ask in _questions(home, groups).items()
            ),
        ]


def bounded(settings: Settings, connection: BoundedConnection, ask: Ask) -> Sequence[Sample]:
    """Ask in a transaction with a statement timeout, which reads by indexes. Raises BrewError where it fails."""
    try:
        with (
            database.explained(settings),
            connection.answering_within(_ANSWER_S),
            connection.transaction(),
        ):
            connection.execute(exporter_queries["bounded"], {"timeout": str(_STATEMENT_MS)})
            return ask(connection)
    except BrewError as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise BrewError(error.message, hint="give it a reader's rights: see `brewctl db grants`") from error
        raise


def _questions(home: Home, groups: Sequence[str]) -> dict[str, Ask]:
    own: dict[str, Ask] = {
        "outbox_oldest": _oldest,
        "outbox_rows": _rows,
        "replicas": _replicas([*_ROLES, *groups]),
        "retention": _retention,
    }
    shared: dict[str, Ask] = {
        "oldest_transaction": _transaction(server(home)),
        "partitions": _partitions(home),
    }
    if home.groups:
        shared["parked_events"] = _parked(home.groups)
        shared["waiting_events"] = _waiting(home.groups, laned={each.group for each in home.downstreams if each.lanes})
    return shared if home.apart else own | shared


def _oldest(connection: BoundedConnection) -> Sequence[Sample]:
    (age_s,) = connection.execute(exporter_queries["oldest"]).fetchone() or (0.0,)
    return [Sample(OUTBOX_OLDEST, age_s)]


def _rows(connection: BoundedConnection) -> Sequence[Sample]:
    ready, set_aside = connection.execute(exporter_queries["waiting"], {"most": _MOST_ROWS}).fetchone() or (0, 0)
    return [Sample(OUTBOX_ROWS, ready, ("ready",)), Sample(OUTBOX_ROWS, set_aside, ("set_aside",))]


def _replicas(roles: Sequence[str]) -> Ask:
    def ask(connection: BoundedConnection) -> Sequence[Sample]:
        found: dict[str, int] = dict(
            connection.execute(exporter_queries["replicas"], {"silent_s": SILENT_S}).fetchall()
        )
        return [Sample(REPLICAS, found.get(role, 0), (role,)) for role in dict.fromkeys([*roles, *sorted(found)])]

    return ask


def _parked(groups: Sequence[str]) -> Ask:
    def ask(connection: BoundedConnection) -> Sequence[Sample]:
        rows = connection.execute(exporter_queries["parked_by_consumer"], {"consumers": list(groups)})
        return [Sample(PARKED, count, (consumer,)) for consumer, count in rows]

    return ask


def _partitions(home: Home) -> Ask:
    """Ask for partitions. A downstream's database has the dedup table only; its last id is the last processed one."""
    tables = ("processed_events",) if home.apart else ("outbox", "processed_events")

    def ask(connection: BoundedConnection) -> Sequence[Sample]:
        query, asked = ("last_processed", {"consumers": home.groups}) if home.apart else ("last_id", None)
        (last,) = connection.execute(exporter_queries[query], asked).fetchone() or (0,)
        samples = []
        for table in tables:
            found = connection.execute(exporter_queries["partitions"], {"table": table, "last": last}).fetchone()
            count, ahead = found or (0, 0)
            labels = (server(home), table)
            samples += [Sample(PARTITIONS, count, labels), Sample(PARTITIONS_AHEAD, ahead, labels)]
        return samples

    return ask


def _waiting(groups: Sequence[str], *, laned: Collection[str]) -> Ask:
    """Ask for waiting events. A group without lanes is listed too if it has some: its nodes may use another channel."""

    def ask(connection: BoundedConnection) -> Sequence[Sample]:
        asked = {"consumers": list(groups), "most": _MOST_ROWS}
        found = connection.execute(exporter_queries["waiting_by_consumer"], asked).fetchall()
        rows = [row for row in found if row[0] in laned or row[1]]
        counts = [Sample(WAITING, count, (consumer,)) for consumer, count, _ in rows]
        return counts + [Sample(WAITING_OLDEST, oldest_s, (consumer,)) for consumer, _, oldest_s in rows]

    return ask


def _retention(connection: BoundedConnection) -> Sequence[Sample]:
    families = (WATERMARK, RETENTION_RAN, RETENTION_HELD, RETENTION_REFUSED)
    found = connection.execute(exporter_queries["retention"]).fetchone()
    return [Sample(family, value) for family, value in zip(families, found or (), strict=bool(found))]


def _transaction(name: str) -> Ask:
    def ask(connection: BoundedConnection) -> Sequence[Sample]:
        (age_s,) = connection.execute(exporter_queries["oldest_transaction"]).fetchone() or (None,)
        return [] if age_s is None else [Sample(OLDEST_TRANSACTION, age_s, (name,))]

    return ask
