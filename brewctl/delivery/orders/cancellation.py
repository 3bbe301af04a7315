"""Cancels an order: its new status and the event order.cancelled are written in one commit."""

from collections.abc import Callable
from dataclasses import dataclass

from brewctl.delivery import events
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.orders import acceptance, store
from brewctl.delivery.orders.acceptance import InvalidOrderError
from brewctl.delivery.schema import no_partition
from brewctl.proto.orders_pb2 import (
    ORDER_STATUS_CANCELLED,
    ORDER_STATUS_NEW,
    CancelRequest,
    CancelResponse,
    OrderCancelled,
    OrderStatus,
)
from brewctl.sql import queries

LONGEST_REASON = 500
_CANCELLED = OrderStatus.Name(ORDER_STATUS_CANCELLED)


class UnknownStatusError(Exception):
    """The order has a status that this version does not know, so it can't decide whether to cancel it."""


class OlderPublisherError(Exception):
    """An order node of the version before runs, which would publish the cancel's row as an order.created."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A valid request to cancel an order, which may not exist."""

    order_id: str
    reason: str
    trace_id: str
    traceparent: str | None
    tenant_id: str | None = None  # the order must be this tenant's; None: any tenant's


def accept(request: CancelRequest, *, traceparent: str | None, tenant_id: str | None = None) -> Cancellation:
    """Validate a request. Raises InvalidOrderError."""
    if violations := acceptance.text_violations("reason", request.reason, shortest=0, longest=LONGEST_REASON):
        raise InvalidOrderError("; ".join(violations))
    trace_id = acceptance.trace_id(traceparent)
    return Cancellation(request.order_id, request.reason, trace_id, acceptance.parent(traceparent), tenant_id)


def cancel(
    connection: BoundedConnection, wish: Cancellation, *, topic: str, left_s: Callable[[], float]
) -> tuple[CancelResponse | None, bool]:
    """Cancel an order and add its event, in one commit; return the answer, and whether anything was written.

    Nothing is written for an order that is cancelled already. The answer is None where there is no order of that id, or
    it is another tenant's. `left_s` returns how many seconds the caller still waits: at 0 no commit is sent. Raises
    UnknownStatusError, OlderPublisherError, TooLateError, CommitFailedError; after a psycopg.Error nothing was written.
    """
    if not events.is_uuid(wish.order_id):
        return None, False
    return no_partition.with_room(connection, lambda: _cancel(connection, wish, topic=topic, left_s=left_s))


def _cancel(
    connection: BoundedConnection, wish: Cancellation, *, topic: str, left_s: Callable[[], float]
) -> tuple[CancelResponse | None, bool]:
    with store.commit_within(connection, left_s, statement_s=connection.limits.create_s) as ready:
        # The aggregate's row is locked after the order's, in every Cancel: no two can deadlock.
        found = connection.execute(queries["lock_order"], {"id": wish.order_id, "tenant_id": wish.tenant_id}).fetchone()
        if found is None:
            return None, False
        order_id, tenant_id, status, now, older = found
        answer = CancelResponse(order_id=str(order_id), status=ORDER_STATUS_CANCELLED)
        known = store.status_of(status)
        if known == ORDER_STATUS_CANCELLED:
            return answer, False
        if known != ORDER_STATUS_NEW:
            raise UnknownStatusError(f"order {order_id} has the status {status[:80]!r}, unknown to this version")
        if older is not None:
            raise OlderPublisherError(f"{older} of an older version does not know cancels: retry once it has ended")
        event = OrderCancelled(
            order_id=str(order_id),
            reason=wish.reason,
            cancelled_at=store.timestamp(now),
            trace_id=wish.trace_id,
            tenant_id=tenant_id,
        )
        parameters = {
            "id": order_id,
            "status": _CANCELLED,
            "cancelled_at": now,
            "topic": topic,
            "event_type": events.ORDER_CANCELLED,
            "payload": event.SerializeToString(),
            "tenant_id": tenant_id,
            "trace_id": wish.trace_id,
            "traceparent": wish.traceparent,
        }
        connection.execute(queries["cancel_order"], parameters)
        ready()
    return answer, True
