"""Whether the database is there: known at every moment, so that nobody has to find out by waiting."""

import math
import random
import threading
import time
from collections.abc import Callable, Sequence

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection, NoAnswerError, Pool
from brewctl.errors import BrewError
from brewctl.probes import heartbeat

logger = log.get(__name__)

_SLICE_S = 0.2  # also the longest that a stop waits


class Availability:
    """Keeps a connection of its own, and calls the database away while it can't have one.

    A server that goes is noticed at once, for that closes the connection; one that falls silent within twice
    database_look_s. A lost connection alone is no outage: it is one where no other can be had.
    """

    def __init__(self, settings: Settings, pools: Sequence[Pool], *, name: str) -> None:
        """Watch for these pools."""
        self._settings = settings
        self._pools = pools
        self._name = name
        # Called with whether the database is there, when that changes.
        self.on_change: Callable[[bool], None] = lambda _there: None
        self._lost_at: float | None = None
        self._away_at = math.inf
        self._told = False
        self._loop = heartbeat.Loop("watch", within_s=settings.limits.longest_turn_s)

    @property
    def away(self) -> bool:
        """Whether asking the database is in vain."""
        return time.monotonic() >= self._away_at

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        with self._loop:
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        look_s = self._settings.limits.database_look_s
        while not stop.is_set():
            self._loop.beat()
            try:
                with database.connect(self._settings, name=self._name) as connection:
                    database.require_writable(connection, self._settings)
                    self._found()
                    self._stay(connection, stop)
            except BrewError as error:
                tried_again = self._lost_at is not None
                self._lost(error)
                if tried_again:
                    stop.wait(look_s * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret

    def _stay(self, connection: BoundedConnection, stop: threading.Event) -> None:
        look_s = self._settings.limits.database_look_s
        looked_at = time.monotonic()
        while not stop.is_set():
            self._loop.beat()
            if database.has_news(connection, within_s=_SLICE_S) or time.monotonic() >= looked_at + look_s:
                with connection.answering_within(look_s):
                    connection.execute("")
                database.require_writable(connection, self._settings)
                looked_at = time.monotonic()

    def _lost(self, error: BrewError) -> None:
        now = time.monotonic()
        # A server that has ended a connection may give another at once: that long, nobody is turned away.
        away = self._lost_at is not None or isinstance(error.__cause__, NoAnswerError)
        self._away_at = min(self._away_at, now if away else now + self._settings.limits.database_look_s)
        self._lost_at = self._lost_at or now
        if away and not self._told:
            self._told = True
            logger.warning("database_away", reason=error.message, hint="calls are answered UNAVAILABLE till it is back")
            self.on_change(False)

    def _found(self) -> None:
        if self._lost_at is None:
            return
        for pool in self._pools:
            pool.drain()  # what it holds is as dead as ours was
        away_s = time.monotonic() - self._lost_at
        self._lost_at, self._away_at = None, math.inf
        if self._told:
            self._told = False
            logger.info("database_back", away_s=round(away_s, 1))
            self.on_change(True)
