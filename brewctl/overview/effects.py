"""The effects of a downstream, by its `done` query: those of one order, or their number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from brewctl.delivery.database import Connection
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError


@dataclass(frozen=True)
class OrderEffect:
    """A group's effect of an order. `node` is empty if the `done` query does not return it."""

    group: str
    node: str
    created_at: datetime


def of_order(
    connection: Connection, downstreams: Sequence[Downstream], order_id: UUID, handled: Mapping[str, datetime]
) -> list[OrderEffect]:
    """Return the effects of an order that the downstreams' `done` queries return, in the downstreams' order.

    `handled`: when each group first processed an event of the order, for a `done` query without `created_at`. Raises
    BrewError if a `done` query fails.
    """
    return [
        OrderEffect(downstream.group, str(row.get("node_id") or ""), at)
        for downstream in downstreams
        if downstream.done
        for row in _rows(connection, downstream, order_id)
        if (at := row.get("created_at") or handled.get(downstream.group))
    ]


def counted(connection: Connection, query: LiteralString, downstreams: Sequence[Downstream]) -> tuple[Any, ...]:
    """Return the only row of a query, with each downstream's number of effects appended, all of the same moment.

    A downstream without a `done` query counts the events that it processed. Raises BrewError if a query fails.
    """
    if not downstreams:
        return connection.execute(query).fetchone() or ()
    whole = sql.SQL("SELECT {} FROM (\n{}\n) AS counted").format(
        sql.SQL(", ").join([sql.SQL("counted.*"), *map(_number, downstreams)]), sql.SQL(query)
    )
    try:
        row = connection.execute(whole).fetchone()
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        raise _failed(downstreams, error) from error
    assert row is not None
    return row


def number(connection: Connection, downstream: Downstream) -> int:
    """Count the effects of a downstream, as `counted` does."""
    return int(counted(connection, "SELECT", [downstream])[0])


def by_node(connection: Connection, downstream: Downstream) -> dict[str, int]:
    """Count the effects of a downstream by node, for a `done` query that returns `node_id`."""
    query = sql.SQL("SELECT done.node_id, count(*) FROM {} GROUP BY 1 ORDER BY 1").format(_effects(downstream))
    return dict(connection.execute(query).fetchall())


def statuses(connection: Connection, downstream: Downstream) -> list[tuple[UUID, str]]:
    """Return each order with an effect, and the status that the effect shows, for a `done` query that returns both."""
    query = sql.SQL("SELECT done.order_id, done.order_status FROM {}").format(_effects(downstream))
    return connection.execute(query).fetchall()


def tables(connection: Connection, downstream: Downstream) -> list[str]:
    """Return the tables that a `done` query reads, as SQL identifiers; none without such a query.

    Raises BrewError if the query fails.
    """
    if not downstream.done:
        return []
    try:
        row = connection.execute(
            sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) SELECT * FROM {}").format(_effects(downstream))
        ).fetchone()
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        raise _failed([downstream], error) from error
    assert row is not None
    plan = row[0][0]["Plan"]
    found = {(node["Schema"], node["Relation Name"]) for node in _nodes(plan) if "Relation Name" in node}
    return [sql.Identifier(*names).as_string(connection) for names in sorted(found)]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _number(downstream: Downstream) -> sql.Composable:
    if downstream.done:
        return sql.SQL("(SELECT count(*) FROM {})").format(_effects(downstream))
    processed = sql.SQL("(SELECT count(*) FROM processed_events WHERE consumer = {})").format(downstream.group)
    if not downstream.lanes:
        return processed
    waiting = sql.SQL("(SELECT count(*) FROM waiting_events WHERE consumer = {})").format(downstream.group)
    return sql.SQL("{} - {}").format(processed, waiting)


def _rows(connection: Connection, downstream: Downstream, order_id: UUID) -> Iterator[dict[str, Any]]:
    query = sql.SQL("SELECT * FROM {} WHERE done.order_id = {}").format(
        # A literal without a type takes the column's type, so that the column's index can be used.
        _effects(downstream),
        sql.SQL(f"'{order_id}'"),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        try:
            yield from cursor.execute(query)
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            raise _failed([downstream], error) from error


def _effects(downstream: Downstream) -> sql.Composable:
    """Return the `done` query as a table, with its first column renamed to `order_id`."""
    text = downstream.done.strip().rstrip(";")  # trusted: the operator chose the downstream's module
    return sql.SQL("(\n{}\n) AS done (order_id)").format(sql.SQL(text))


def _failed(downstreams: Sequence[Downstream], error: psycopg.Error) -> BrewError:
    said = " ".join((error.diag.message_primary or str(error)).split())
    return BrewError(
        f"the `done` query of {' or '.join(downstream.group for downstream in downstreams)} fails: {said}",
        hint="where its table is missing: run `brewctl db init MODULE:NAME` of that downstream",
    )
