"""The downstream `notifications`: tells each customer once that an order was accepted, and once of its cancel.

    Kafka ──group "notifications"──► this node's partitions
                                       └──one commit: processed_events + notifications_log──► PostgreSQL

Its channel is the log, which is the table alone, or calls of a webhook: set the same for all nodes and tools.
"""

import os
from dataclasses import replace

from brewctl.config import CHANNEL_VARIABLE, Channel
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import ORDER_CANCELLED, ORDER_CREATED
from brewctl.errors import UsageError
from brewctl.sql import queries

LOG = Downstream(
    "notifications",
    sql=queries["notify"],
    events=(ORDER_CREATED, ORDER_CANCELLED),
    done="SELECT order_id, node_id, created_at,"
    " CASE state WHEN 'cancelled' THEN 'ORDER_STATUS_CANCELLED' ELSE 'ORDER_STATUS_NEW' END AS order_status"
    " FROM notifications_log",
    service="notification-service",
    verb="notified",
    undo="told",
    counter="notifications",
    node="notification",
    tables=("notifications_log",),
)


def _chosen(text: str) -> Downstream:
    """Return the downstream for a channel; empty: the log. Raises UsageError."""
    if text in {"", Channel.LOG}:
        return LOG
    if text != Channel.WEBHOOK:
        raise UsageError(f"{CHANNEL_VARIABLE}: {text[:80]!r} is no channel", hint=f"use {', '.join(Channel)}")
    from brewctl.roles import webhook  # noqa: PLC0415 - only where it is chosen

    lanes = webhook.concurrency()
    channel = webhook.Webhook(lanes=lanes)
    return replace(LOG, sql=None, handler=channel.notify, lanes=lanes, lifespan=channel.opened)


DOWNSTREAM = _chosen(os.environ.get(CHANNEL_VARIABLE, "").strip())
