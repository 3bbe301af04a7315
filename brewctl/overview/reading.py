"""Reading the life of one order: finds the order, and reads its rows in each database that downstreams use."""

from collections.abc import Sequence
from dataclasses import replace
from typing import LiteralString, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from brewctl.delivery import events
from brewctl.delivery.database import BoundedConnection, Connection
from brewctl.delivery.schema import homes
from brewctl.delivery.schema.homes import Home
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.overview import effects
from brewctl.overview.effects import OrderEffect
from brewctl.overview.replicas import nodes
from brewctl.overview.trace import DedupRow, Life, Order, Parked, TracedEvent, Waiting
from brewctl.sql import queries

_DIGITS = 32  # of a UUID
_NAMED = 3  # orders that an error names if a prefix fits several
_T = TypeVar("_T")


def find(connection: Connection, text: str) -> UUID:
    """Return the order with this id, or with an id that begins so; a leading `order-` is ignored.

    Raises UsageError if the text can't begin an id, BrewError if no order or several orders fit.
    """
    first, last = bounds(text)
    found = newest(connection, first, last, limit=_NAMED + 1)
    if not found:
        raise BrewError(
            f"no order {'begins with' if first != last else 'is'} {text[:80]}",
            hint="`brewctl create-order` prints the ids of those that it makes",
        )
    if len(found) > 1:
        several = f"{len(found)} orders begin" if len(found) <= _NAMED else "many orders begin"
        names = ", ".join(str(order_id) for order_id in found[:_NAMED])
        raise BrewError(f"{several} with {text[:80]}: {names}", hint="give more of the id")
    return found[0]


def bounds(text: str) -> tuple[UUID, UUID]:
    """Return the first and the last id with this prefix. Raises UsageError if the text can't begin an id."""
    digits = text.strip().lower().removeprefix(events.aggregate_id("")).replace("-", "")
    if not 0 < len(digits) <= _DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise UsageError(f"{text[:80]!r} is no order id", hint="use a UUID, or the beginning of one")
    return UUID(digits.ljust(_DIGITS, "0")), UUID(digits.ljust(_DIGITS, "f"))


def newest(connection: Connection, first: UUID, last: UUID, *, limit: int) -> list[UUID]:
    """Return the ids of at most `limit` orders between two ids, newest first."""
    found = connection.execute(queries["orders_between"], {"first": first, "last": last, "limit": limit})
    return [order_id for (order_id,) in found]


def read(connection: BoundedConnection, order_id: UUID, where: Sequence[Home]) -> Life:
    """Read all rows of an order, in one snapshot of each home. `connection` is to the first home, the story's database.

    If a downstream's own database can't be reached, that is noted in `away`. Raises BrewError if the order was removed
    or a `done` query fails; UnreachableError.
    """
    story, *apart = where
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        orders = _rows(connection, Order, queries["traced_order"], id=order_id)
        if not orders:
            raise BrewError(f"order {order_id} is not in postgres any more", hint="was the database reset?")
        own = _rows(connection, TracedEvent, queries["traced_events"], aggregate_id=events.aggregate_id(str(order_id)))
        ids = [event.id for event in own]
        done = [_done(connection, story, order_id, ids)]
        there = nodes(connection)
    away: dict[str, BrewError] = {}
    for home in apart:
        try:
            with homes.connect(home, name="trace") as elsewhere:
                elsewhere.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                with elsewhere.transaction():
                    done.append(_done(elsewhere, home, order_id, ids))
        except UnreachableError as error:
            away |= dict.fromkeys(home.groups, error)
    dedup = sorted((row for each in done for row in each.dedup), key=lambda row: row.processed_at)
    return Life(
        orders[0],
        own,
        dedup,
        [effect for each in done for effect in each.effects],
        there,
        [downstream for home in where for downstream in home.downstreams],
        parked=[parked for each in done for parked in each.parked],
        away=away,
        waiting=[waiting for each in done for waiting in each.waiting],
    )


class _Done(NamedTuple):
    """The rows of an order in one home of downstreams."""

    dedup: Sequence[DedupRow]
    effects: Sequence[OrderEffect]
    parked: Sequence[Parked]
    waiting: Sequence[Waiting]


def _done(connection: Connection, home: Home, order_id: UUID, ids: Sequence[int]) -> _Done:
    dedup = _rows(connection, DedupRow, queries["traced_dedup"], groups=home.groups, ids=ids)
    first = {row.group: row.processed_at for row in reversed(dedup)}
    found = effects.of_order(connection, home.downstreams, order_id, first)
    parked = _rows(connection, Parked, queries["traced_parked"], groups=home.groups, ids=ids)
    waiting = _rows(connection, Waiting, queries["traced_waiting"], groups=home.groups, ids=ids)
    return _Done(dedup, found, [replace(each, apart=home.apart) for each in parked], waiting)


def _rows(connection: Connection, shape: type[_T], query: LiteralString, **parameters: object) -> list[_T]:
    with connection.cursor(row_factory=class_row(shape)) as cursor:
        return cursor.execute(query, parameters).fetchall()
