"""Group commit: orders that wait at the same time are written by one statement, in one commit.

    submit ──► queue ──► writer: all that wait ──one statement, one commit──► PostgreSQL
                           ├── on_written
                           └── on_unwritten: the statement failed, or the idempotency key is taken

The writer waits for nothing but the database: while one batch is committed the next one gathers, so a lone order
is not delayed, and batches grow with the load. What a batch did not write is to be tried again with `create_alone`,
in a transaction of its own: so a bad row fails alone, with its own error, and delays no neighbour.
"""

import queue
import threading
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database, orders
from brewctl.delivery.database import Pool
from brewctl.delivery.orders import CommitFailedError, NewOrder, TooLateError
from brewctl.proto.orders_pb2 import Order

_LOST = "08"  # the family of SQLSTATE that is about connections
_LOOK_S = 0.2  # how often an idle writer looks whether it is to stop


class Submission(Protocol):
    """An order to be written, and who is told: once, by one of the two, in the writer's thread."""

    new: NewOrder

    def left_s(self) -> float:
        """Say how many seconds somebody still waits for it: at 0 it is not written any more."""

    def on_written(self) -> None:
        """Hear that it is committed, with its event."""

    def on_unwritten(self, doubtful: bool) -> None:
        """Hear that it is not known to be; `doubtful`: it may be all the same."""


class GroupCommit:
    """Takes orders from any number of threads, and writes them in one of its own, which is to call `run`."""

    def __init__(self, settings: Settings, writing: Pool, alone: Pool, *, notify: Callable[[], None]) -> None:
        """Write batches with a connection of `writing`, single orders with one of `alone`.

        `notify` is called after each commit.
        """
        self._settings = settings
        self._limits = settings.limits
        self._writing = writing
        self._alone = alone
        self._notify = notify
        self._queue: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.waiting = 0  # submissions that nobody was told of yet

    def submit(self, submission: Submission) -> None:
        """Hand an order to the writer. Returns at once; bounding how many wait is the caller's business."""
        with self._lock:
            self.waiting += 1
        self._queue.put(submission)

    def create_alone(self, new: NewOrder, *, left_s: Callable[[], float], doubtful: bool) -> Order:
        """Write an order that its batch did not write, or find the first one of its idempotency key.

        `doubtful`: its batch may have written it. Raises what `orders.create` raises; after a psycopg.Error or a
        TooLateError nothing was written.
        """
        try:
            order = database.ask(
                self._alone,
                lambda connection: orders.create(connection, new, topic=self._settings.topic, left_s=left_s),
                wait_s=min(self._limits.database_wait_s, max(0.0, left_s())),
            )
        except (TooLateError, psycopg.Error) as error:
            if doubtful:
                raise CommitFailedError(" ".join(str(error).split()) or "no answer in time") from error
            raise
        self._notify()
        return order

    def run(self, stop: threading.Event) -> None:
        """Write what is submitted until `stop` is set, which must not be before the last order was told of."""
        while not stop.is_set():
            try:
                batch = [self._queue.get(timeout=_LOOK_S)]
            except queue.Empty:
                continue
            while not self._queue.empty():
                batch.append(self._queue.get())
            self._write(batch)

    def _write(self, batch: list[Submission]) -> None:
        limits, sent, doubtful = self._limits, False, False
        written: set[UUID] = set()
        timely = [each for each in batch if each.left_s() > 0]
        try:
            with (
                self._writing.connection(limits.create_connection_s) as connection,
                connection.answering_within(limits.create_batch_s + limits.database_look_s),
            ):
                sent = True
                written = orders.write(connection, [each.new for each in timely], topic=self._settings.topic)
        except psycopg.Error as error:
            # Without a word of the server's own, or by a proxy's word that it is lost, it may have committed.
            doubtful = sent and (error.sqlstate or _LOST).startswith(_LOST)
        if written:
            self._notify()
        for each in batch:
            # Its place is free as it is told: a client that is answered may ask again at once.
            with self._lock:
                self.waiting -= 1
            if each.new.id in written:
                each.on_written()
            else:
                each.on_unwritten(doubtful and each in timely)
