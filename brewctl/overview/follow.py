"""Waiting for an order: looks at it again and again, and goes on when a server goes away."""

import time
from collections.abc import Iterator
from uuid import UUID

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.schema import homes
from brewctl.errors import UnreachableError
from brewctl.overview import reading, standing, trace
from brewctl.overview.standing import Look

_EVERY_S = 0.1
# Kafka is asked when the order has stood still for so long, and then so often: each time costs new connections.
_STILL_S = 2.0


def follow(settings: Settings, order_id: UUID, *, timeout_s: float) -> Iterator[Look | UnreachableError]:
    """Yield an order's life whenever it has moved, and where it stands while it stands still, until it ends.

    It ends with a look at both servers: at one that is finished, or that can't be, or after `timeout_s` seconds. While
    PostgreSQL is away its errors are yielded, one an outage. Raises BrewError where the order is gone.
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


def _watch(settings: Settings, connection: BoundedConnection, order_id: UUID, until: float) -> Iterator[Look]:
    where = homes.of(settings)
    steps: list[trace.Step] = []
    look_at = time.monotonic() + _STILL_S
    while True:
        life = reading.read(connection, order_id, where)
        if (now_steps := life.steps()) != steps:
            steps = now_steps
            yield Look(life)
            look_at = time.monotonic() + _STILL_S
        now = time.monotonic()
        if life.finished or now > min(look_at, until):
            look = standing.look(settings, connection, order_id)
            yield look
            if look.life.finished or now > until or all(each.stuck for each in look.standings):
                return
            look_at = time.monotonic() + _STILL_S
        time.sleep(_EVERY_S)
