"""Downstreams with lanes whose handler calls a receiver that the test is, and processes of them in threads."""

import contextlib
import dataclasses
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from brewctl.config import Settings
from brewctl.delivery import database, events
from brewctl.delivery.broker import Record
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.inbox.lanes import Lanes, lanes_of
from brewctl.delivery.presence import Work
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig, limited

CREATED = events.ORDER_CREATED
TABLE = "CREATE TABLE handled (at bigint GENERATED ALWAYS AS IDENTITY, consumer text, order_id uuid, seq bigint)"
_ids = iter(range(1, 1_000_000))


def ids(count: int) -> list[str]:
    """New order ids."""
    return [str(uuid.uuid4()) for _ in range(count)]


def record(
    order_id: str,
    *,
    seq: int = 1,
    outbox_id: int | None = None,
    event_id: str | None = None,
    traceparent: str | None = None,
) -> Record:
    """A record of an order's event; every one is an order.created, whatever its number."""
    outbox_id = outbox_id or next(_ids)
    key = events.aggregate_id(order_id)
    headers = events.headers_for(
        outbox_id,
        key,
        CREATED,
        node="order-1",
        event_id=event_id or str(uuid.uuid4()),
        seq=seq,
        traceparent=traceparent,
    )
    return Record("topic", key.encode(), OrderCreated(order_id=order_id).SerializeToString(), headers, 0, outbox_id, 1)


class Gate:
    """Where calls wait until the test opens it."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, _event: Event[Any]) -> None:
        self.reached.set()
        assert self._open.wait(60)

    def open(self) -> None:
        """Let them go on."""
        self._open.set()


class Receiver:
    """What the handler calls: it notes each call, and answers as the test says."""

    def __init__(self, rig: Rig, *, lanes: int = 4, attempts: int = 3, writes: bool = True, **limits: Any) -> None:
        self.rig = rig
        self.settings = limited(rig.settings, **{"lane_retry_first_s": 0.1, "publish_poll_s": 0.1, **limits})
        self.calls: list[tuple[str, int, str | None]] = []  # order id, seq, event id
        self.answers: dict[str, Callable[[Event[Any]], None]] = {}  # by order id
        self.every: Callable[[Event[Any]], None] = lambda _event: None
        self.most_at_once: Counter[str] = Counter()
        self._at_once: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._writes = writes
        group = f"calls-{uuid.uuid4().hex[:8]}"
        self.downstream = Downstream(group, handler=self._handle, events=(CREATED,), lanes=lanes, attempts=attempts)

    @property
    def group(self) -> str:
        """The group of its downstream."""
        return self.downstream.group

    def _handle(self, event: Event[Any], tx: Any) -> None:
        order_id = event.data.order_id
        with self._lock:
            self.calls.append((order_id, event.seq or 0, event.id))
            for name in (order_id, "all"):
                self._at_once[name] += 1
                self.most_at_once[name] = max(self.most_at_once[name], self._at_once[name])
        try:
            self.answers.get(order_id, self.every)(event)
            if self._writes:
                tx.execute("INSERT INTO handled (consumer, order_id, seq) VALUES (%s, %s, %s)", self._row(event))
        finally:
            with self._lock:
                self._at_once[order_id] -= 1
                self._at_once["all"] -= 1

    def _row(self, event: Event[Any]) -> list[Any]:
        return [self.group, event.data.order_id, event.seq]

    def seqs(self, order_id: str) -> list[int]:
        """The calls for an order, by their numbers, in their order."""
        with self._lock:
            return [seq for each, seq, _ in self.calls if each == order_id]

    def in_hand(self, order_id: str) -> int:
        """How many calls for an order run now."""
        with self._lock:
            return self._at_once[order_id]

    def handled(self, order_id: str | None = None) -> list[int]:
        """What was committed, in its order."""
        asked = {"group": self.group, "order_id": order_id}
        rows = self.rig.connection.execute(
            "SELECT seq FROM handled WHERE consumer = %(group)s"
            " AND (%(order_id)s::uuid IS NULL OR order_id = %(order_id)s) ORDER BY at",
            asked,
        )
        return [seq for (seq,) in rows.fetchall()]

    def rows(self) -> list[tuple[str, int]]:
        """The keys of what waits, and how often each has failed."""
        asked = "SELECT key, attempts FROM waiting_events WHERE consumer = %s ORDER BY id"
        return self.rig.connection.execute(asked, [self.group]).fetchall()

    def processed(self) -> int:
        """How many dedup rows there are."""
        asked = "SELECT count(*) FROM processed_events WHERE consumer = %s"
        (count,) = self.rig.connection.execute(asked, [self.group]).fetchone() or (0,)
        return int(count)

    def parked(self) -> list[tuple[int | None, str, int]]:
        """What is parked: number, reason, attempts."""
        return [(each.seq, each.reason, each.attempts) for each in parking.find(self.rig.connection, [self.group])]

    def take(self, *records: Record) -> Inbox:
        """Take records, as a consumer does."""
        with database.open_pool(self.settings, name="taker", size=1) as pool:
            inbox = Inbox(self.settings, pool, self.downstream, node="taker")
            inbox.handle(records)
        return inbox

    def running(self, node: str = "n-1", **limits: Any) -> contextlib.AbstractContextManager["Process"]:
        """Run the lanes of a process while the block runs."""
        return _running(limited(self.settings, **limits), self.downstream, node)


@dataclasses.dataclass
class Process:
    """The lanes of a process."""

    lanes: Lanes
    stop: threading.Event

    @property
    def work(self) -> Work:
        """What they have done."""
        return self.lanes.work(Work())


@contextlib.contextmanager
def _running(settings: Settings, downstream: Downstream, node: str) -> Iterator[Process]:
    """Run them in a thread; an error of theirs is the block's."""
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
            yield Process(lanes, stop)
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def until(what: str, condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    wait_until(what, lambda: bool(condition()), timeout_s=30, every_s=0.02)


def at_once(receiver: Receiver, orders: Sequence[str]) -> list[int]:
    """How many calls there were at once, of each of these orders, at most."""
    return [receiver.most_at_once[order] for order in orders]
