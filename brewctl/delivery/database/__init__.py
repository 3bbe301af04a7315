"""PostgreSQL: connections whose every wait has a time limit, and errors in the user's words.

Read `bounded` first: the connection that all of brewctl uses. Then `session` (the settings that it asks for),
`connecting` (one connection, or a pool), `errors`, and `availability` (watches for outages). The transactions build on
these: `short_transaction` (two round trips), `lent_transaction` and `lazy_transaction` (a handler's `tx`).
"""

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
