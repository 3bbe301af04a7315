"""PostgreSQL: connections that end every wait, and its errors in the user's words."""

from brewctl.delivery.database.address import conninfo, place
from brewctl.delivery.database.bounded import BoundedConnection, Connection, NoAnswerError
from brewctl.delivery.database.connecting import Pool, ask, connect, has_news, open_pool, require_writable
from brewctl.delivery.database.errors import UNAVAILABLE, explained

__all__ = [
    "UNAVAILABLE",
    "BoundedConnection",
    "Connection",
    "NoAnswerError",
    "Pool",
    "ask",
    "connect",
    "conninfo",
    "explained",
    "has_news",
    "open_pool",
    "place",
    "require_writable",
]
