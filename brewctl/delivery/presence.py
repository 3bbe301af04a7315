"""Presence: each replica keeps a row in `nodes` that says who it is, what it has done, and that it is there.

For whoever looks on. The flow itself relies on none of it: a row that can't be written is written later.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.errors import BrewError
from brewctl.lifecycle import beside
from brewctl.sql import queries

logger = log.get(__name__)

EVERY_S = 1.0


@dataclass(frozen=True)
class Work:
    """What a replica has done since its start."""

    processed: int = 0  # records, or outbox rows
    effects: int = 0  # rows published, orders reserved or notified
    skipped: int = 0  # records that needed no effect
    dead: int = 0  # set aside


@dataclass(frozen=True)
class Replica:
    """A process that plays a role."""

    node: str
    role: str  # order, inventory, notifications
    address: str = ""  # where it listens


@contextlib.contextmanager
def kept(settings: Settings, replica: Replica, work: Callable[[], Work]) -> Iterator[None]:
    """Keep the row while the block runs, written every second, and at its end with `stopped_at`.

    A process that is killed leaves a row without that, which grows old.
    """
    over = threading.Event()
    writer = _Writer(settings.impatient, replica, work)  # a stop waits for it
    with beside({"presence": lambda: writer.run(over)}, over):
        yield


class _Writer:
    def __init__(self, settings: Settings, replica: Replica, work: Callable[[], Work]) -> None:
        self._settings = settings
        self._who = {**asdict(replica), "host": socket.gethostname(), "pid": os.getpid()}
        self._work = work
        self._began = time.monotonic()
        self._again = False
        self._rival: str | None = None

    def run(self, over: threading.Event) -> None:
        """Write until `over` is set, and once more: where the connection is lost just then, by another one."""
        last = False
        while not last:
            last = over.is_set()
            try:
                self._keep(over)
                return
            except BrewError as error:
                logger.debug("presence_unwritten", reason=error.message)
                over.wait(EVERY_S)

    def _keep(self, over: threading.Event) -> None:
        with database.connect(self._settings, name=self._who["node"]) as connection:
            # A row that a crash of PostgreSQL forgets is written again: no commit waits for the disk.
            connection.execute(queries["commit_lazily"])
            connection.execute(queries["forget_old_nodes"])
            while not over.is_set():
                self._write(connection, stopped=False)
                over.wait(EVERY_S)
            self._write(connection, stopped=True)

    def _write(self, connection: BoundedConnection, *, stopped: bool) -> None:
        row = {**self._who, **asdict(self._work()), "age_s": time.monotonic() - self._began, "stopped": stopped}
        with connection.answering_within(self._settings.limits.database_look_s):
            (rival,) = connection.execute(queries["keep_presence"], row | {"again": self._again}).fetchone() or (None,)
        self._again = True
        if rival and rival != self._rival:
            logger.warning("node_name_taken", by=rival, hint="start one of them with another --node")
            self._rival = rival
