"""The turn of a retention run: one works at a time, in whichever process and behind whichever pooler.

It is a row with an end. An advisory lock of a session would be the pooler's, and not the run's.
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
    """Another run has the turn."""


class Turn:
    """The right to change partitions: one run has it at a time."""

    def __init__(self, connection: BoundedConnection, stop: threading.Event | None = None) -> None:
        """Have none yet. Once `stop` is set the run ends at its next step."""
        self._connection = connection
        self._stop = stop
        # In containers hosts and pids may be the same.
        self.node = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"

    def take(self) -> tuple[str, float]:
        """Take or renew it. Return who has it instead, and for how many seconds; "" where it is ours."""
        asked = {"node": self.node, "lasts_s": _TURN_S}
        ours, other, left_s = self._ask(retention_queries["take_turn"], asked)
        return ("", 0.0) if ours else (other, left_s)

    def renew(self) -> None:
        """Renew it before a step. Raises BrewError where another run has it by now, or where it is to end."""
        if self._stop and self._stop.is_set():
            raise BrewError("stopped between two steps", hint="the next run goes on there")
        if other := self.take()[0]:
            raise BrewError(f"retention run {other} has taken over", hint="this one stood still for too long")

    def give_up(self) -> None:
        """Let the next run begin."""
        with contextlib.suppress(psycopg.Error):
            self._connection.execute(retention_queries["give_up_turn"], {"node": self.node})

    def _ask(self, query: LiteralString, asked: dict[str, object]) -> tuple[bool, str, float]:
        found = self._connection.execute(query, asked).fetchone()
        assert found is not None  # ensure_state has made the row
        return found[0], found[1], found[2]


@contextlib.contextmanager
def take_turn(connection: BoundedConnection, stop: threading.Event | None = None) -> Iterator[Turn]:
    """Have the turn in the block. Raises BusyError, with who has it, where another run works."""
    ours = Turn(connection, stop)
    other, left_s = ours.take()
    if other:
        hint = f"it ends by itself; where it was killed, in {left_s:.0f} s"
        raise BusyError(f"another retention run works: {other}", hint=hint)
    try:
        yield ours
    finally:
        ours.give_up()
