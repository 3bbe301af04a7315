"""Keeps a row in `nodes` for each replica: its name and address, its counts, and when it was last seen.

The tools read it; of the roles only a cancel does, during an upgrade. So a row that can't be written is written later,
and a stop waits only about a second for the last write.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import LiteralString

from psycopg import Cursor
from psycopg.rows import TupleRow

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.errors import BrewError
from brewctl.sql import queries

logger = log.get(__name__)

EVERY_S = 1.0
_FORGET_EVERY_S = 3600.0


@dataclass(frozen=True)
class Work:
    """A replica's counts since its start, and its trouble now."""

    processed: int = 0  # records, or outbox rows
    effects: int = 0  # rows published, or effects of a downstream
    skipped: int = 0  # records that needed no effect
    dead: int = 0  # rows set aside, or records that are dead letters or parked
    trouble: str = ""  # what keeps it from its work; empty if nothing does


@dataclass(frozen=True)
class Replica:
    """A running process of a role."""

    node: str
    role: str  # order, publisher, or a downstream's group
    address: str = ""  # where it listens
    publishes: bool = False  # whether it publishes the outbox's rows


@contextlib.contextmanager
def kept(
    settings: Settings, replica: Replica, work: Callable[[], Work], *, inbox: Settings | None = None
) -> Iterator[None]:
    """Write the replica's row every second during the block, and at its end with `stopped_at`.

    `inbox`: the database with the inbox's tables of this replica: old redeliveries in it are deleted every hour.
    A process that is killed leaves a row without `stopped_at`, as does one whose last write takes over a second.
    """
    over = threading.Event()
    writer = _Writer(settings.impatient, replica, work, inbox=inbox and inbox.impatient)
    # A daemon thread: an open connection attempt does not delay the exit.
    thread = threading.Thread(target=writer.run, args=(over,), name="presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        bound_s = settings.limits.database_look_s / 2
        thread.join(bound_s)
        until = time.monotonic() + bound_s
        while thread.is_alive() and time.monotonic() < until:
            writer.give_up(within_s=bound_s)
            thread.join(bound_s / 10)


class _Writer:
    def __init__(
        self, settings: Settings, replica: Replica, work: Callable[[], Work], *, inbox: Settings | None
    ) -> None:
        self._settings = settings
        self._inbox_here = inbox is not None and inbox.database_url == settings.database_url
        self._elsewhere = None if self._inbox_here else inbox
        self._forget_here_at = self._forget_elsewhere_at = time.monotonic()
        self._who = {**asdict(replica), "host": socket.gethostname(), "pid": os.getpid()}
        self._work = work
        self._began = time.monotonic()
        self._again = False
        self._rival: str | None = None
        self._connection: BoundedConnection | None = None
        self._given_up = False

    def run(self, over: threading.Event) -> None:
        """Write until `over` is set, and once more, over a new connection if the last one is lost."""
        last = False
        while not last and not self._given_up:
            last = over.is_set()
            try:
                self._keep(over)
                return
            except BrewError as error:
                logger.debug("presence_unwritten", reason=error.message)
                self._forget_elsewhere()
                over.wait(EVERY_S)

    def give_up(self, *, within_s: float) -> None:
        """Give up the last write, and make PostgreSQL cancel its statement, which may wait for a lock."""
        self._given_up = True
        if connection := self._connection:
            connection.end_statement(within_s=within_s)

    def _keep(self, over: threading.Event) -> None:
        with database.connect(self._settings, name=self._who["node"]) as self._connection:
            while not over.is_set():
                self._write(stopped=False)
                if time.monotonic() >= self._forget_here_at:
                    self._ask(queries["forget_replicas"])
                    if self._inbox_here:
                        self._ask(queries["forget_redeliveries"])
                    self._forget_here_at = time.monotonic() + _FORGET_EVERY_S
                self._forget_elsewhere()
                over.wait(EVERY_S)
            if not self._given_up:
                self._write(stopped=True)

    def _forget_elsewhere(self) -> None:
        """Delete old redeliveries in the downstream's own database, also while the story's is away."""
        if self._elsewhere and time.monotonic() >= self._forget_elsewhere_at:
            self._forget_elsewhere_at = time.monotonic() + _FORGET_EVERY_S
            with contextlib.suppress(BrewError), database.connect(self._elsewhere, name=self._who["node"]) as own:
                own.execute(queries["forget_redeliveries"])

    def _write(self, *, stopped: bool) -> None:
        row = {**self._who, **asdict(self._work()), "age_s": time.monotonic() - self._began, "stopped": stopped}
        (rival,) = self._ask(queries["keep_presence"], row | {"again": self._again}).fetchone() or (None,)
        self._again = True
        if rival and rival != self._rival:
            logger.warning("node_name_taken", by=rival, hint="start one of them with another --node")
            self._rival = rival

    def _ask(self, query: LiteralString, parameters: Mapping[str, object] | None = None) -> Cursor[TupleRow]:
        assert self._connection is not None
        with self._connection.answering_within(self._settings.limits.database_look_s):
            return self._connection.execute(query, parameters)
