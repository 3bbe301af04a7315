"""Watches whether the database can be reached, so that a call need not wait for a timeout to find out."""

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
    """Keeps a connection of its own, and reports the database as away while no new connection can be made.

    A server that shuts down is noticed at once, because that closes the connection; one that stops answering is
    noticed within twice database_look_s. A lost connection is an outage only where no new one can be made.
    """

    def __init__(self, settings: Settings, pools: Sequence[Pool], *, name: str) -> None:
        """`pools`: those whose connections are dropped after an outage."""
        self._settings = settings
        self._pools = pools
        self._name = name
        # Called with True when the database is back, with False when it is away.
        self.on_change: Callable[[bool], None] = lambda _there: None
        self._lost_at: float | None = None
        self._away_at = math.inf
        self._told = False
        self._loop = heartbeat.Loop("watch", within_s=settings.limits.longest_turn_s)

    @property
    def away(self) -> bool:
        """Whether the database can't be reached now."""
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
        # A server that has closed a connection may accept another at once: calls are refused only after
        # database_look_s without one.
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
            pool.drain()  # its connections were lost in the same outage
        away_s = time.monotonic() - self._lost_at
        self._lost_at, self._away_at = None, math.inf
        if self._told:
            self._told = False
            logger.info("database_back", away_s=round(away_s, 1))
            self.on_change(True)
