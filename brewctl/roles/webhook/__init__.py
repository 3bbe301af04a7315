"""Sends notifications over HTTP: a signed call of the receiver for each change of an order, at least once.

    event ──POST, signed, Idempotency-Key: the event's id──► receiver ──2xx──► one commit: dedup row + notifications_log

A crash between the 2xx and the commit sends the notification again, with the same idempotency key. This room imports
only public names of `brewctl`, as any downstream may. `sender` makes the calls, `receivers` reads the settings,
`circuit` stops calls while the receiver is down, and `shares` limits the calls for one customer.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from brewctl import Event, OrderCancelled, OrderCreated, UsageError
from brewctl.roles.webhook.shares import Shares

if TYPE_CHECKING:
    import psycopg

    from brewctl.roles.webhook.sender import Sender

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
CONCURRENCY = "BREW_WEBHOOK_CONCURRENCY"
_AT_ONCE = range(1, 257)
# The row that `notify` of queries.sql writes for the log: a new column belongs in both. Only an event with a higher seq
# changes the row, so that a late repeat changes nothing.
_TOLD = """
INSERT INTO notifications_log AS n (order_id, node_id, channel, seq, state, cancelled_at)
VALUES (%(order_id)s, %(node)s, 'webhook', %(seq)s, %(state)s,
        CASE WHEN %(state)s = 'cancelled' THEN clock_timestamp() END)
ON CONFLICT (order_id) DO UPDATE
   SET seq = excluded.seq, state = excluded.state, cancelled_at = excluded.cancelled_at
 WHERE excluded.seq > n.seq
"""


def concurrency(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many calls a node makes at once, from the environment. Raises UsageError."""
    text = environ.get(CONCURRENCY, "").strip() or "16"
    if not text.isascii() or not text.isdigit() or int(text) not in _AT_ONCE:
        raise UsageError(f"{CONCURRENCY}: {text[:80]!r} is no number of calls", hint=f"use 1 to {_AT_ONCE[-1]}")
    return int(text)


class Webhook:
    """The downstream's handler and its lifespan."""

    def __init__(self, *, lanes: int) -> None:
        self._lanes = lanes
        self._shares = Shares(lanes)
        self._sender: Sender | None = None
        self._node = ""

    @contextlib.contextmanager
    def opened(self, node: str) -> Iterator[None]:
        """Hold a connection to the receiver while the block runs. Raises UsageError for missing or wrong settings."""
        try:
            # Imported here: tools that only read notifications need no HTTP client.
            from brewctl.roles.webhook import receivers, sender  # noqa: PLC0415
        except ModuleNotFoundError as error:
            hint = "run `pip install 'brewctl[webhook]'`"
            raise UsageError(f"--channel webhook: there is no module {error.name}", hint=hint) from error
        with sender.Sender(receivers.from_environment(), concurrency=self._lanes) as self._sender:
            self._node = node
            yield
        self._sender = None

    def notify(self, event: Event[OrderCreated | OrderCancelled], tx: "psycopg.Connection[Any]") -> None:
        """Call the receiver, then write the notification's row through `tx`."""
        assert self._sender is not None
        cancelled = isinstance(event.data, OrderCancelled)
        state, default_seq = ("cancelled", 2) if cancelled else ("created", 1)
        headers = {"traceparent": trace} if (trace := _traceparent(event)) else {}
        customer = event.data.customer_id if isinstance(event.data, OrderCreated) else ""
        with self._shares.of(customer):
            self._sender.send(identity_of(event), body_of(event, state), headers, of=customer)
        tx.execute(
            _TOLD,
            {
                "order_id": event.data.order_id,
                "node": self._node,
                "seq": max(event.seq or 0, default_seq),
                "state": state,
            },
        )


def identity_of(event: Event[Any]) -> str:
    """Return a notification's idempotency key: the same each time it is sent."""
    return event.id or f"outbox-{event.outbox_id}"


def body_of(event: Event[OrderCreated | OrderCancelled], state: str) -> str:
    """Return a notification's JSON: the same each time it is sent, for a receiver that compares bodies by key."""
    data = {"order_id": event.data.order_id, "state": state}
    if isinstance(event.data, OrderCreated):
        data["customer_id"] = event.data.customer_id
    elif event.data.reason:
        data["reason"] = event.data.reason
    return json.dumps(
        {
            "id": identity_of(event),
            "type": event.type,
            "timestamp": event.occurred_at.isoformat().replace("+00:00", "Z"),
            "tenant_id": event.tenant_id,
            "trace_id": event.trace_id,
            "data": data,
        },
        separators=(",", ":"),
    )


def _traceparent(event: Event[Any]) -> str:
    text = dict(event.headers).get("traceparent", b"").decode(errors="replace")
    return text if _TRACEPARENT.fullmatch(text) else ""
