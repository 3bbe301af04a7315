"""A downstream with lanes whose handler calls a receiver that the test is, and processes of it in threads."""

import contextlib
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from brewctl.config import Settings
from brewctl.delivery import database, events
from brewctl.delivery.broker import Record
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import Inbox
from brewctl.delivery.lanes import Lanes, lanes_of
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig

GROUP = "calls"
CREATED = events.ORDER_CREATED


def record(outbox_id: int, order_id: str, *, seq: int = 1, event_id: str | None = None) -> Record:
    """A record of an order's event; every one is an order.created, whatever its number."""
    key = events.aggregate_id(order_id)
    headers = events.headers_for(
        outbox_id, key, CREATED, node="order-1", event_id=event_id or str(uuid.uuid4()), seq=seq
    )
    return Record("topic", key.encode(), OrderCreated(order_id=order_id).SerializeToString(), headers, 0, outbox_id, 1)


class Receiver:
    """What the handler calls: it notes each call, and does with it what the test says."""

    def __init__(self, *, lanes: int = 4, attempts: int = 3, writes: bool = True) -> None:
        self.calls: list[tuple[str, int, str | None]] = []  # order id, seq, event id
        self.answers: dict[str, Callable[[Event[Any]], None]] = {}  # by order id
        self.every: Callable[[Event[Any]], None] | None = None
        self.at_once: dict[str, int] = defaultdict(int)
        self.most_of_a_key = 0
        self._lock = threading.Lock()
        self._writes = writes
        self.downstream = Downstream(GROUP, handler=self._handle, events=(CREATED,), lanes=lanes, attempts=attempts)

    def _handle(self, event: Event[Any], tx: Any) -> None:
        order_id = event.data.order_id
        with self._lock:
            self.calls.append((order_id, event.seq or 0, event.id))
            self.at_once[order_id] += 1
            self.most_of_a_key = max(self.most_of_a_key, self.at_once[order_id])
        try:
            if answer := self.answers.get(order_id, self.every):
                answer(event)
            if self._writes:
                tx.execute("INSERT INTO handled (order_id, seq) VALUES (%s, %s)", (order_id, event.seq))
        finally:
            with self._lock:
                self.at_once[order_id] -= 1

    def seqs(self, order_id: str) -> list[int]:
        """The calls for an order, by their numbers, in their order."""
        with self._lock:
            return [seq for each, seq, _ in self.calls if each == order_id]


def make_table(rig: Rig) -> None:
    """Make what the handler writes."""
    rig.connection.execute(
        "CREATE TABLE handled (at bigint GENERATED ALWAYS AS IDENTITY, order_id uuid, seq bigint, node text)"
    )


def handled(rig: Rig, order_id: str | None = None) -> list[int]:
    """What was committed, in its order."""
    rows = rig.connection.execute(
        "SELECT seq FROM handled WHERE %s::uuid IS NULL OR order_id = %s ORDER BY at", (order_id, order_id)
    )
    return [seq for (seq,) in rows.fetchall()]


def waiting(rig: Rig) -> list[tuple[int, int]]:
    """The outbox ids that wait, and how often each failed."""
    return rig.connection.execute("SELECT outbox_id, attempts FROM waiting_events ORDER BY id").fetchall()


def take(settings: Settings, downstream: Downstream, records: Sequence[Record]) -> Inbox:
    """Take records, as a consumer does."""
    with database.open_pool(settings, name="taker", size=1) as pool:
        inbox = Inbox(settings, pool, downstream, node="taker")
        inbox.handle(records)
    return inbox


@contextlib.contextmanager
def running(settings: Settings, downstream: Downstream, *, node: str = "n-1") -> Iterator[Lanes]:
    """Run the lanes of a process, in a thread; a failure of theirs is the block's."""
    stop = threading.Event()
    failures: list[BaseException] = []
    with lanes_of(settings, settings, downstream, node=node, tables=None) as lanes:
        assert lanes is not None
        found = lanes

        def run() -> None:
            try:
                found.run(stop)
            except BaseException as error:  # noqa: BLE001 - the test's to see
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield lanes
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    wait_until(what, condition, timeout_s=30, every_s=0.02)
