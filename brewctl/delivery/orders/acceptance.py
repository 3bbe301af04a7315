"""Validates a Create request and makes an order of it, which is not written yet."""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from iso4217 import Currency

from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, CreateRequest, Order, OrderCreated

DEFAULT_TENANT = "brew"
MAX_AMOUNT_CENTS = 10**12
_SHOWN_CHARACTERS = 40
_ISO_4217 = frozenset(currency.code for currency in Currency)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class InvalidOrderError(Exception):
    """A request that breaks the contract's input rules. The message names every violation."""


@dataclass(frozen=True, slots=True)
class NewOrder:
    """A valid order that is not written yet."""

    id: UUID
    created_at: datetime
    order: Order
    tenant_id: str
    trace_id: str
    idempotency_key: str | None
    traceparent: str | None = None  # the caller's, where it is well-formed

    def event(self) -> bytes:
        """Return the payload of the order's outbox row."""
        order = self.order
        return OrderCreated(
            order_id=order.order_id,
            customer_id=order.customer_id,
            amount_cents=order.amount_cents,
            currency=order.currency,
            status=order.status,
            created_at=order.created_at,
            trace_id=self.trace_id,
            tenant_id=self.tenant_id,
        ).SerializeToString()


def accept(request: CreateRequest, *, tenant_id: str | None, traceparent: str | None) -> NewOrder:
    """Validate a request and return it as an order with an id and a time. Raises InvalidOrderError."""
    violations = [
        *text_violations("customer_id", request.customer_id, shortest=1, longest=128),
        *text_violations("idempotency_key", request.idempotency_key, shortest=0, longest=255),
    ]
    if not 1 <= request.amount_cents <= MAX_AMOUNT_CENTS:
        violations.append(f"amount_cents must be 1 to {MAX_AMOUNT_CENTS}, not {request.amount_cents}")
    if request.currency not in _ISO_4217:
        violations.append(f"currency must be an ISO 4217 code such as EUR, not {shown(request.currency)}")
    if tenant_id is not None and not _TENANT.fullmatch(tenant_id):
        violations.append(f"x-tenant-id must match [A-Za-z0-9._-]{{1,64}}, not {shown(tenant_id)}")
    if violations:
        raise InvalidOrderError("; ".join(violations))
    now = datetime.now(UTC)
    order_id = _uuid7(now)
    order = Order(
        order_id=str(order_id),
        customer_id=request.customer_id,
        amount_cents=request.amount_cents,
        currency=request.currency,
        status=ORDER_STATUS_NEW,
        created_at=Timestamp(seconds=int(now.timestamp()), nanos=now.microsecond * 1000),
    )
    key = request.idempotency_key or None
    return NewOrder(order_id, now, order, tenant_id or DEFAULT_TENANT, trace_id(traceparent), key, parent(traceparent))


def _uuid7(now: datetime) -> UUID:
    """Make an id that begins with its time, so that new ids are in the same index pages. RFC 9562, 5.7."""
    chance = secrets.randbits(74)
    value = int(now.timestamp() * 1000) << 80 | 0x7 << 76 | chance >> 62 << 64 | 0b10 << 62 | chance & (1 << 62) - 1
    return UUID(int=value)


def trace_id(traceparent: str | None) -> str:
    """Return the trace id of a W3C traceparent, or a new one where that is absent or malformed."""
    return _trace_of(traceparent) or secrets.token_hex(16)


def parent(traceparent: str | None) -> str | None:
    """Return the part of a traceparent that version 0 defines, to store and send on; None where it is malformed."""
    return traceparent[:55] if traceparent and _trace_of(traceparent) else None


def _trace_of(traceparent: str | None) -> str | None:
    """Return the trace id of a traceparent. https://www.w3.org/TR/trace-context/#traceparent-header ."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match:
        version, trace, parent, more = match.groups()
        if version != "ff" and (version != "00" or not more) and set(trace) != {"0"} and set(parent) != {"0"}:
            return trace
    return None


def text_violations(name: str, text: str, *, shortest: int, longest: int) -> list[str]:
    """Return what is wrong with a text field of a request."""
    violations = []
    if not shortest <= len(text) <= longest:
        violations.append(f"{name} must have {shortest} to {longest} characters, not {len(text)}")
    # PostgreSQL refuses NUL; other control characters would break the lines that show the text.
    if _CONTROL.search(text):
        violations.append(f"{name} must not contain control characters")
    return violations


def shown(text: str) -> str:
    """Return a text of a request quoted and shortened, for a message."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
