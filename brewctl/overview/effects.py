"""What a downstream has done: its `done` query, asked for one order or counted."""

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
class Effect:
    """What a group has done for an order; `node` is empty where its `done` query does not tell."""

    group: str
    node: str
    created_at: datetime


def of_order(
    connection: Connection, downstreams: Sequence[Downstream], order_id: UUID, handled: Mapping[str, datetime]
) -> list[Effect]:
    """Read the effects that the downstreams say an order has, in their order.

    `handled`: when a group first had an event of the order, for one that does not tell by `created_at`.
    Raises BrewError where a `done` query fails.
    """
    return [
        Effect(downstream.group, str(row.get("node_id") or ""), at)
        for downstream in downstreams
        if downstream.done
        for row in _rows(connection, downstream, order_id)
        if (at := row.get("created_at") or handled.get(downstream.group))
    ]


def counted(connection: Connection, query: LiteralString, downstreams: Sequence[Downstream]) -> tuple[Any, ...]:
    """Return the one row of a query with a number more for each downstream: its effects, of the same moment.

    Of one without a `done` query: the events that it has processed. Raises BrewError where the query fails.
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


def tables(connection: Connection, downstream: Downstream) -> list[str]:
    """Name the tables that a `done` query reads, as they are written in SQL; none where there is no such query.

    Raises BrewError where the query fails.
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
        # A literal of no type: it becomes what the column is, so that its index serves.
        _effects(downstream),
        sql.SQL(f"'{order_id}'"),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        try:
            yield from cursor.execute(query)
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            raise _failed([downstream], error) from error


def _effects(downstream: Downstream) -> sql.Composable:
    """Return the `done` query as a table whose first column is `order_id`, whatever it calls that."""
    text = downstream.done.strip().rstrip(";")  # its author is who runs it
    return sql.SQL("(\n{}\n) AS done (order_id)").format(sql.SQL(text))


def _failed(downstreams: Sequence[Downstream], error: psycopg.Error) -> BrewError:
    said = " ".join((error.diag.message_primary or str(error)).split())
    return BrewError(
        f"the `done` query of {' or '.join(downstream.group for downstream in downstreams)} fails: {said}",
        hint="where its table is missing: run `brewctl db init MODULE:NAME` of that downstream",
    )
