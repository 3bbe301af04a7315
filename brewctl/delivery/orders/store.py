"""Writes accepted orders with their events, in one commit, and reads orders."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import cast
from uuid import UUID

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from brewctl import log
from brewctl.delivery import events
from brewctl.delivery.database import BoundedConnection, arrays
from brewctl.delivery.orders.acceptance import NewOrder, shown
from brewctl.delivery.orders.refusals import never_taken
from brewctl.delivery.schema import no_partition
from brewctl.proto.orders_pb2 import (
    ORDER_STATUS_NEW,
    ORDER_STATUS_UNSPECIFIED,
    Order,
    OrderStatus,
)
from brewctl.sql import queries

_NEW = OrderStatus.Name(ORDER_STATUS_NEW)
# Errors with which the server says that it has rolled back.
UNDONE = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)


class KeyReusedError(Exception):
    """The idempotency key was used for another order before."""


class KeyHeldError(Exception):
    """Another transaction holds the idempotency key, and too many orders wait already. Nothing was written."""


class TooLateError(Exception):
    """The caller's time is up. Nothing was written."""


class CommitFailedError(Exception):
    """The commit was sent, and it is not known whether it happened. A retry is safe with the same idempotency key."""


def write(connection: BoundedConnection, new: Sequence[NewOrder], *, topic: str) -> set[UUID]:
    """Write orders and their outbox rows with one statement; return the ids of those that it wrote.

    An order is not written where its id or its idempotency key is taken, also by another one of `new`.
    """
    if not new:
        return set()
    columns = {
        "ids": arrays.of_texts([each.order.order_id for each in new]),
        "tenant_ids": arrays.of_texts([each.tenant_id for each in new]),
        "customer_ids": arrays.of_texts([each.order.customer_id for each in new]),
        "amounts": arrays.of_numbers([each.order.amount_cents for each in new]),
        "currencies": arrays.of_texts([each.order.currency for each in new]),
        "idempotency_keys": arrays.of_texts([each.idempotency_key for each in new]),
        "created_at": arrays.of_texts([each.created_at.isoformat() for each in new]),
        "payloads": arrays.of_bytes([each.event() for each in new]),
        "trace_ids": arrays.of_texts([each.trace_id for each in new]),
        "traceparents": arrays.of_texts([each.traceparent for each in new]),
    }
    parameters = {**columns, "status": _NEW, "topic": topic, "event_type": events.ORDER_CREATED}
    return {order_id for (order_id,) in connection.execute(queries["create_orders"], parameters, binary=True)}


def write_around(
    connection: BoundedConnection, new: Sequence[NewOrder], *, topic: str
) -> tuple[set[UUID], dict[UUID, Exception]]:
    """Write in one commit those of several orders that PostgreSQL accepts, after it refused all of them together.

    Returns the ids of those that it wrote, as `write`, and why it refused the others. The orders are halved until each
    refused one is alone: at most 2 log2(n) statements for one. After a psycopg.Error nothing was written, unless the
    connection was lost at the commit.
    """
    return no_partition.with_room(connection, lambda: _write_around(connection, new, topic=topic))


def _write_around(
    connection: BoundedConnection, new: Sequence[NewOrder], *, topic: str
) -> tuple[set[UUID], dict[UUID, Exception]]:
    written: set[UUID] = set()
    refused: dict[UUID, Exception] = {}

    def attempt(part: Sequence[NewOrder]) -> bool:
        try:
            taken = write(connection, part, topic=topic)
        except Exception as error:
            if isinstance(error, psycopg.Error) and not never_taken(error):
                raise
            connection.execute("ROLLBACK TO SAVEPOINT taken")
            if len(part) == 1:
                refused[part[0].id] = error
            else:
                halve(part)
            return False
        connection.execute("SAVEPOINT taken")
        written.update(taken)
        return True

    def halve(part: Sequence[NewOrder]) -> None:
        half = len(part) // 2
        rest = part[half:]
        if attempt(part[:half]) and len(rest) > 1:
            halve(rest)  # the refused order is in this half: trying the whole half would fail
        else:
            attempt(rest)

    with connection.transaction_within(connection.limits.create_s):
        # A deferred constraint would fail the commit of all orders.
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT taken")
        halve(new)
    return written, refused


def find(connection: BoundedConnection, new: Sequence[NewOrder]) -> dict[UUID, Order]:
    """Return the committed orders that these repeat, by the id of the new one. One statement, which needs no lock.

    It is the order with the same id, else the order that the same idempotency key made.
    """
    if not new:
        return {}
    columns = {
        "ids": [each.id for each in new],
        "tenant_ids": [each.tenant_id for each in new],
        "idempotency_keys": [each.idempotency_key for each in new],
    }
    return {asked: _order(*row) for asked, *row in connection.execute(queries["orders_by_ids_or_keys"], columns)}


@contextlib.contextmanager
def commit_within(
    connection: BoundedConnection, left_s: Callable[[], float], *, statement_s: float
) -> Iterator[Callable[[], None]]:
    """A transaction for a call. The block must call the function that it gets once all is written, before the commit.

    `left_s` returns how many seconds the caller still waits: at 0 no commit is sent. Statements are ended after
    `statement_s`. Raises TooLateError, CommitFailedError; after a psycopg.Error nothing was written.
    """
    if (bound_s := min(left_s(), statement_s)) <= 0:
        raise TooLateError
    committing = False

    def ready() -> None:
        nonlocal committing
        # Time may have passed, in a wait for a lock or while this process was paused.
        if left_s() <= 0:
            raise TooLateError
        committing = True

    try:
        with connection.transaction_within(bound_s):
            yield ready
    except UNDONE:
        raise  # also where the commit itself raised it: it was rolled back
    except psycopg.Error as error:
        if committing and not never_taken(error):
            raise CommitFailedError(log.reason(error)) from error
        raise


def create(
    connection: BoundedConnection,
    new: NewOrder,
    *,
    topic: str,
    left_s: Callable[[], float] | None = None,
    statement_s: float = math.inf,
) -> Order:
    """Write one order and its outbox row in a commit of their own; return it, or the first order of its key.

    `left_s` returns how many seconds the caller still waits (default: create_s): at 0 no commit is sent. The statement
    is ended after `statement_s`. Raises KeyReusedError where the first order has another body, TooLateError,
    CommitFailedError; after a psycopg.Error nothing was written.
    """

    def attempt() -> Order:
        within = left_s or (lambda: connection.limits.create_s)
        with commit_within(connection, within, statement_s=statement_s) as ready:
            if not write(connection, [new], topic=topic):
                # Its key or id is taken, and that order is committed: the INSERT has waited for the commit.
                return first(new, find(connection, [new]).get(new.id))
            ready()
        return new.order

    return no_partition.with_room(connection, attempt)


def first(new: NewOrder, found: Order | None) -> Order:
    """Return the order that was found, if it has the same body as the new one. Raises KeyReusedError."""
    if found is None or _body(found) != _body(new.order):
        raise KeyReusedError(f"idempotency_key {shown(new.idempotency_key or '')} made another order")
    return found


def get(connection: BoundedConnection, order_id: str, *, tenant_id: str | None = None) -> Order | None:
    """Return an order; None where there is none of that id, or it is not this tenant's."""
    if not events.is_uuid(order_id):
        return None
    with connection.answering_within(connection.statement_s + connection.limits.database_look_s):
        row = connection.execute(queries["order_by_id"], {"id": order_id, "tenant_id": tenant_id}).fetchone()
    return None if row is None else _order(*row)


def status_of(name: str) -> OrderStatus:
    """Return a status by its name in the table; ORDER_STATUS_UNSPECIFIED for one that only a later version knows."""
    known = OrderStatus.DESCRIPTOR.values_by_name.get(name)
    return cast("OrderStatus", known.number if known else ORDER_STATUS_UNSPECIFIED)


def timestamp(time: datetime) -> Timestamp:
    """Return a time as a protobuf Timestamp."""
    made = Timestamp()
    made.FromDatetime(time)
    return made


def _order(
    order_id: UUID,
    customer_id: str,
    amount_cents: int,
    currency: str,
    status: str,
    created_at: datetime,
    cancelled_at: datetime | None,
) -> Order:
    return Order(
        order_id=str(order_id),
        customer_id=customer_id,
        amount_cents=amount_cents,
        currency=currency,
        status=status_of(status),
        created_at=timestamp(created_at),
        cancelled_at=cancelled_at and timestamp(cancelled_at),
    )


def _body(order: Order) -> tuple[str, int, str]:
    return order.customer_id, order.amount_cents, order.currency
