"""A lease that lets one retention run work at a time, across processes and behind poolers.

It is a row with a time at which it ends. An advisory lock would belong to a session, which behind a pooler is not the
run's own.
"""

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import LiteralString

import psycopg

from brewctl.delivery.database import BoundedConnection
from brewctl.errors import BrewError
from brewctl.sql import retention_queries

_TURN_S = 60


class BusyError(BrewError):
    """Another retention run works."""


class Turn:
    """The lease of the right to change partitions, which one run has at a time."""

    def __init__(self, connection: BoundedConnection, stop: threading.Event | None = None) -> None:
        """Begin without the lease. Once `stop` is set, the next `renew` raises."""
        self._connection = connection
        self._stop = stop
        # A random part, because processes in containers may have the same host name and pid.
        self.node = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"

    def take(self) -> tuple[str, float]:
        """Take or renew the lease; return which other run has it, and for how many seconds, or "" where it is ours."""
        asked = {"node": self.node, "lasts_s": _TURN_S}
        ours, other, left_s = self._ask(retention_queries["take_turn"], asked)
        return ("", 0.0) if ours else (other, left_s)

    def renew(self) -> None:
        """Renew the lease before a step. Raises BrewError where another run has it by now, or this run must stop."""
        if self._stop and self._stop.is_set():
            raise BrewError("stopped between two steps", hint="the next run goes on there")
        if other := self.take()[0]:
            raise BrewError(f"retention run {other} has taken over", hint="this run was paused for too long")

    def give_up(self) -> None:
        """Give up the lease, so that the next run can begin."""
        with contextlib.suppress(psycopg.Error):
            self._connection.execute(retention_queries["give_up_turn"], {"node": self.node})

    def _ask(self, query: LiteralString, asked: dict[str, object]) -> tuple[bool, str, float]:
        found = self._connection.execute(query, asked).fetchone()
        assert found is not None  # ensure_state has made the row
        return found[0], found[1], found[2]


@contextlib.contextmanager
def take_turn(connection: BoundedConnection, stop: threading.Event | None = None) -> Iterator[Turn]:
    """Hold the lease during the block. Raises BusyError, which names the other run, where one works."""
    ours = Turn(connection, stop)
    other, left_s = ours.take()
    if other:
        hint = f"it ends by itself; where it was killed, in {left_s:.0f} s"
        raise BusyError(f"another retention run works: {other}", hint=hint)
    try:
        yield ours
    finally:
        ours.give_up()
