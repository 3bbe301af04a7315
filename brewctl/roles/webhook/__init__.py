"""Notifications over HTTP: each is a signed call of a receiver, made once a change of an order.

    event ──POST, signed, Idempotency-Key: the event's id──► receiver ──2xx──► one commit: dedup row + notifications_log

Written with what `from brewctl import …` gives to anybody. A crash between the 2xx and the commit sends the
notification again, under the same key: nobody can do better from outside the receiver's own transaction.
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
# Merged by seq: a late repeat changes nothing.
_TOLD = """
INSERT INTO notifications_log AS n (order_id, node_id, channel, seq, state, cancelled_at)
VALUES (%(order_id)s, %(node)s, 'webhook', %(seq)s, %(state)s,
        CASE WHEN %(state)s = 'cancelled' THEN clock_timestamp() END)
ON CONFLICT (order_id) DO UPDATE
   SET seq = excluded.seq, state = excluded.state, cancelled_at = excluded.cancelled_at
 WHERE excluded.seq > n.seq
"""


def concurrency(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many calls a node makes at once. Raises UsageError."""
    text = environ.get(CONCURRENCY, "").strip() or "16"
    if not text.isascii() or not text.isdigit() or int(text) not in _AT_ONCE:
        raise UsageError(f"{CONCURRENCY}: {text[:80]!r} is no number of calls", hint=f"use 1 to {_AT_ONCE[-1]}")
    return int(text)


class Webhook:
    """The handler, and what it needs while its node runs."""

    def __init__(self, *, lanes: int) -> None:
        self._lanes = lanes
        self._shares = Shares(lanes)
        self._sender: Sender | None = None
        self._node = ""

    @contextlib.contextmanager
    def opened(self, node: str) -> Iterator[None]:
        """Hold what calls need while the block runs. Raises UsageError for settings that are missing or wrong."""
        try:
            # Here: who only looks at notifications needs no HTTP.
            from brewctl.roles.webhook import receivers, sender  # noqa: PLC0415
        except ModuleNotFoundError as error:
            hint = "run `pip install 'brewctl[webhook]'`"
            raise UsageError(f"--channel webhook: there is no module {error.name}", hint=hint) from error
        with sender.Sender(receivers.from_environment(), concurrency=self._lanes) as self._sender:
            self._node = node
            yield
        self._sender = None

    def notify(self, event: Event[OrderCreated | OrderCancelled], tx: "psycopg.Connection[Any]") -> None:
        """Tell the receiver, and then note that it was told."""
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
    """Return what identifies a notification: the same whenever it is sent."""
    return event.id or f"outbox-{event.outbox_id}"


def body_of(event: Event[OrderCreated | OrderCancelled], state: str) -> str:
    """Return the JSON of a notification: the same whenever it is sent, or a receiver would see a key used twice."""
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
