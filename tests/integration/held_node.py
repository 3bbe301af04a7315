"""An order node in this process, whose writer begins when it is told to: what has come until then is one batch."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Pool
from brewctl.delivery.database.availability import Availability
from brewctl.delivery.orders.alone import Submission
from brewctl.delivery.orders.group_commit import GroupCommit
from brewctl.lifecycle import wait_until
from brewctl.roles.order.admission import Admission
from brewctl.roles.order.cancelling import Cancelling
from brewctl.roles.order.server import OrderServer
from brewctl.roles.order.service import OrderService
from tests.conftest import Rig
from tests.integration.grpc_tools import Service, dialled


class Writer(GroupCommit):
    """Remembers what it was handed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = threading.Event()
        self.submitted: list[Submission] = []
        self._thread = threading.Thread(target=self.run, args=(self.stop,), daemon=True)

    @property
    def pools(self) -> tuple[Pool, Pool]:
        """Its connections to the database: for batches, and for what a batch did not write."""
        return self._writing, self._single

    @property
    def queued(self) -> int:
        """How many orders it has not looked at yet."""
        return self._queue.qsize()

    def submit(self, submission: Submission) -> None:
        self.submitted.append(submission)
        super().submit(submission)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        if self._thread.ident:
            self._thread.join(20)
            assert not self._thread.is_alive()


@dataclass
class HeldNode:
    """The node's parts, and a client of it."""

    client: Service
    server: OrderServer
    admission: Admission
    writer: Writer
    calls: list[Any] = field(default_factory=list)
    notified: list[None] = field(default_factory=list)  # one a commit of a cancel: the publisher would look now

    def wait_for_batch(self, size: int) -> None:
        """Wait until so many orders wait for the writer, and nothing else is in hand."""
        wait_until(
            f"{size} orders that wait",
            lambda: (self.writer.queued, self.admission.in_hand) == (size, size),
            timeout_s=30,
            every_s=0.01,
        )

    def wait_for_gone(self, customer_id: str) -> None:
        """Wait until the node knows that nobody waits for a customer's order any more."""
        (of_theirs,) = [each for each in self.writer.submitted if each.new.order.customer_id == customer_id]
        wait_until("a caller that has gone", lambda: not of_theirs.left_s(), timeout_s=20, every_s=0.01)


def by_way_of(settings: Settings, port: int) -> Settings:
    """Settings of the same database behind a proxy."""
    url = psycopg.conninfo.make_conninfo(settings.database_url, host="127.0.0.1", port=port)
    return dataclasses.replace(settings, database_url=url)


@contextlib.contextmanager
def pools(settings: Settings, alone: Settings | None = None) -> Iterator[tuple[Pool, Pool]]:
    """The writer's pool and the one of single orders, as the role opens them."""
    limits = settings.limits
    with (
        database.open_pool(
            settings, name="writing", size=1, statement_s=limits.create_batch_s, lock_s=limits.create_lock_s
        ) as writing,
        database.open_pool(
            alone or settings,
            name="alone",
            size=limits.alone_threads,
            statement_s=limits.create_s,
            lock_s=limits.create_lock_s,
        ) as single,
    ):
        yield writing, single


@contextlib.contextmanager
def held_node(rig: Rig, settings: Settings | None = None) -> Iterator[HeldNode]:
    """Serve on a free port, without a publisher; at the end whatever was taken has been answered."""
    settings = settings or rig.settings
    stop = threading.Event()
    notified: list[None] = []
    with pools(settings) as (writing, single):
        writer = Writer(settings, writing, single, notify=lambda: None)
        availability = Availability(settings, (single, writing), name="watch")
        admission = Admission(settings.limits, availability, stop)
        cancelling = Cancelling(settings, single, notify=lambda: notified.append(None))
        orders = OrderService(
            settings, admission, reading=single, availability=availability, writer=writer, cancelling=cancelling
        )
        server = OrderServer(settings, orders, admission, host="127.0.0.1", port=0, share_port=False)
        try:
            with dialled(rig, server.address) as client:
                yield HeldNode(client, server, admission, writer, notified=notified)
                wait_until("no call in hand", lambda: admission.in_hand == 0, timeout_s=20, every_s=0.01)
        finally:
            stop.set()
            server.drain(settings.limits.drain_s / 2)
            writer.end()
            orders.shutdown()
