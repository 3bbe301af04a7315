"""Following an order: looks at it repeatedly, also while a server can't be reached for a time."""

import time
from collections.abc import Iterator
from uuid import UUID

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.schema import homes
from brewctl.errors import UnreachableError
from brewctl.overview import reading, standing, trace
from brewctl.overview.standing import OrderView

_EVERY_S = 0.1
# Kafka is asked each time the order has not moved for so long. Not more often, since each time needs new connections.
_STILL_S = 2.0


def follow(settings: Settings, order_id: UUID, *, timeout_s: float) -> Iterator[OrderView | UnreachableError]:
    """Yield a Look at an order each time it has moved, and, while it does not move, where it stands.

    The last Look is at both servers: once the order is finished or stuck, or after `timeout_s` seconds. If PostgreSQL
    can't be reached, its error is yielded, once for each outage. Raises BrewError if the order was removed.
    """
    settings = settings.impatient
    until = time.monotonic() + timeout_s
    away = False
    while True:
        try:
            with database.connect(settings, name="trace") as connection:
                away = False
                yield from _watch(settings, connection, order_id, until)
                return
        except UnreachableError as error:
            if time.monotonic() > until:
                raise
            if not away:
                yield error
            away = True
            time.sleep(_EVERY_S)


def _watch(settings: Settings, connection: BoundedConnection, order_id: UUID, until: float) -> Iterator[OrderView]:
    where = homes.of(settings)
    steps: list[trace.Step] = []
    look_at = time.monotonic() + _STILL_S
    while True:
        life = reading.read(connection, order_id, where)
        if (now_steps := life.steps()) != steps:
            steps = now_steps
            yield OrderView(life)
            look_at = time.monotonic() + _STILL_S
        now = time.monotonic()
        if life.finished or now > min(look_at, until):
            look = standing.look(settings, connection, order_id)
            yield look
            if look.life.finished or now > until or all(each.stuck for each in look.standings):
                return
            look_at = time.monotonic() + _STILL_S
        time.sleep(_EVERY_S)
