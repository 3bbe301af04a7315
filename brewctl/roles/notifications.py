"""notification-service: tells each customer once that the order was accepted.

    Kafka ──group "notifications"──► this node's partitions
                                       └──one commit: processed_events + notifications_log──► PostgreSQL

A group of its own on the same topic: order-service and inventory-service don't know that it exists.
"""

from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import ORDER_CANCELLED, ORDER_CREATED
from brewctl.sql import queries

DOWNSTREAM = Downstream(
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
