"""The downstream `inventory`: reserves the ingredients of each order once, and releases those of a cancelled one.

Kafka ──group "inventory"──► this node's partitions
└──one commit: processed_events + inventory_reservations──► PostgreSQL
"""

from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import ORDER_CANCELLED, ORDER_CREATED
from brewctl.sql import queries

DOWNSTREAM = Downstream(
    "inventory",
    sql=queries["reserve"],
    events=(ORDER_CREATED, ORDER_CANCELLED),
    done="SELECT order_id, node_id, created_at,"
    " CASE WHEN released_at IS NULL THEN 'ORDER_STATUS_NEW' ELSE 'ORDER_STATUS_CANCELLED' END AS order_status"
    " FROM inventory_reservations",
    service="inventory-service",
    verb="reserved",
    undo="released",
    counter="reservations",
    tables=("inventory_reservations",),
)
