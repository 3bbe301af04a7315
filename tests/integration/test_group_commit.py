"""Group commit: who waits at the same time shares a commit, and nobody shares a neighbour's trouble."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from brewctl.config import Settings
from brewctl.delivery.orders import acceptance, group_commit
from brewctl.delivery.orders.acceptance import NewOrder
from brewctl.delivery.orders.alone import Submission
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import Order
from tests.conftest import Rig, limited, open_rig
from tests.integration.grpc_tools import locked_orders, order, rows_of, somebody, wait_for_blocked
from tests.integration.held_node import Writer, by_way_of, pools
from tests.tcp_proxy import Proxy, proxied


class Caller(Submission):
    """Waits for an order of a customer of its own, and keeps what it hears."""

    def __init__(self, rig: Rig, *, key: str = "") -> None:
        request = order(customer_id=somebody(), idempotency_key=key)
        self.new: NewOrder = acceptance.accept(request, tenant_id=None, traceparent=None)
        self.heard: list[str] = []
        self.rows: list[object] = []  # of it, as another session sees them at that moment
        self._rig = rig

    @property
    def customer(self) -> str:
        return self.new.order.customer_id

    def left_s(self) -> float:
        return 20.0

    def on_created(self, order: Order) -> None:
        self._hear(order.order_id)

    def on_failed(self, error: Exception) -> None:
        self._hear(type(error).__name__)

    @property
    def its_own(self) -> list[str]:
        """What it hears where its order was written."""
        return [self.new.order.order_id]

    def _hear(self, what: str) -> None:
        self.rows.append(rows_of(self._rig, self.customer))
        self.heard.append(what)


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all tests here, without a publisher, which would write the outbox too."""
    with open_rig(servers, tmp_path_factory.mktemp("group-commit")) as rig:
        yield rig


@pytest.fixture
def patient(rig: Rig) -> Settings:
    """A batch may wait at a lock for as long as a test holds it."""
    return limited(rig.settings, create_batch_s=20.0, create_lock_s=0.0)


@contextlib.contextmanager
def a_writer(
    settings: Settings, alone: Settings | None = None, *, notify: Callable[[], None] = lambda: None
) -> Iterator[Writer]:
    with pools(settings, alone) as (writing, single):
        writer = Writer(settings, writing, single, notify=notify)
        try:
            yield writer
        finally:
            writer.end()


def wait_until_told(*callers: Caller) -> None:
    wait_until("all callers told", lambda: all(each.heard for each in callers), timeout_s=20, every_s=0.01)


def transactions_of(rig: Rig, *callers: Caller) -> list[tuple[object, ...]]:
    """Which transactions wrote these orders and their outbox rows: pairs of ids."""
    return rig.connection.execute(
        "SELECT o.xmin::text, x.xmin::text FROM orders o JOIN outbox x ON x.aggregate_id = 'order-' || o.id"
        " WHERE o.customer_id = ANY(%s)",
        ([each.customer for each in callers],),
    ).fetchall()


def test_what_waits_while_a_batch_is_written_is_the_next_one_in_one_transaction(rig: Rig, patient: Settings) -> None:
    notified = threading.Semaphore(0)
    first, others = Caller(rig), [Caller(rig) for _ in range(30)]
    with a_writer(patient, notify=notified.release) as writer:
        with locked_orders(rig):
            writer.begin()
            writer.submit(first)
            wait_for_blocked(rig, 1)
            for each in others:
                writer.submit(each)
            assert not first.heard
        wait_until_told(first, *others)
    ((mine, my_event),) = transactions_of(rig, first)
    theirs = transactions_of(rig, *others)
    assert len(theirs) == len(others), "each has one order and one event"
    assert len({transaction for pair in theirs for transaction in pair}) == 1, "all of them in one commit"
    assert mine == my_event != theirs[0][0]
    # Nobody was told before another session could see it, nor twice.
    assert all(each.heard == each.its_own for each in [first, *others])
    assert {tuple(each.rows) for each in [first, *others]} == {((1, 1),)}
    assert [notified.acquire(blocking=False) for _ in range(3)] == [True, True, False], "once a commit"


def test_a_lone_order_waits_for_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_LOOK_S", 3600.0)  # no timer can explain it
    with a_writer(rig.settings) as writer:
        writer.begin()
        for _ in range(3):
            lone = Caller(rig)
            writer.submit(lone)
            wait_until_told(lone)
            assert lone.heard == lone.its_own
        writer.stop.set()
        writer.submit(Caller(rig))  # only an order wakes it


def test_of_equal_keys_in_a_batch_one_is_written_and_the_others_find_it(rig: Rig) -> None:
    key = str(uuid.uuid4())
    same = [Caller(rig, key=key) for _ in range(3)]
    for each in same[1:]:
        each.new.order.customer_id = same[0].customer
    neighbour = Caller(rig)
    with a_writer(rig.settings) as writer:
        for each in [*same, neighbour]:
            writer.submit(each)
        writer.begin()
        wait_until_told(*same, neighbour)
    assert neighbour.heard == neighbour.its_own
    (won,) = [each for each in same if each.heard == each.its_own]
    assert all(each.heard == won.its_own for each in same)
    assert rows_of(rig, won.customer) == (1, 1)


# A connection that is lost without a word


@pytest.fixture
def proxy(rig: Rig) -> Iterator[Proxy]:
    place = rig.connection.info
    with proxied(place.host, place.port) as proxy:
        yield proxy


def silence(proxy: Proxy) -> None:
    """Nothing: the answer never comes, and the writer gives it up."""
    assert proxy.swallowing.is_set()


@pytest.mark.parametrize("lose", [Proxy.hang_up, silence])
def test_a_commit_whose_answer_is_lost_is_found_again(rig: Rig, proxy: Proxy, lose: Callable[[Proxy], None]) -> None:
    settings = limited(rig.settings, create_batch_s=2.0, create_lock_s=0.0, database_connect_s=1)
    callers = [Caller(rig), Caller(rig, key=str(uuid.uuid4()))]
    with a_writer(by_way_of(settings, proxy.port), settings) as writer:
        for each in callers:
            writer.submit(each)
        with locked_orders(rig):
            writer.begin()
            wait_for_blocked(rig, 1)
            proxy.swallowing.set()
        wait_until("the commit", lambda: len(transactions_of(rig, *callers)) == len(callers), timeout_s=20)
        lose(proxy)
        # Each is looked for alone: by its id, where it has no key.
        wait_until_told(*callers)
        assert all(each.heard == each.its_own for each in callers)
        assert {rows_of(rig, each.customer) for each in callers} == {(1, 1)}
        proxy.swallowing.clear()  # for those that come
        wait_until("a writer that has got over it", lambda: written(rig, writer), timeout_s=20)


def written(rig: Rig, writer: Writer) -> bool:
    """Whether another order is written at the first try."""
    another = Caller(rig)
    writer.submit(another)
    wait_until_told(another)
    return another.heard == another.its_own


def test_a_batch_that_is_lost_with_its_connection_is_written_by_the_second_try(
    rig: Rig, proxy: Proxy, patient: Settings
) -> None:
    callers = [Caller(rig), Caller(rig, key=str(uuid.uuid4()))]
    with a_writer(by_way_of(patient, proxy.port), patient) as writer:
        for each in callers:
            writer.submit(each)
        with locked_orders(rig):
            writer.begin()
            wait_for_blocked(rig, 1)
            proxy.swallowing.set()  # the server's goodbye would say that nothing was written
            rig.connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            proxy.hang_up()
        wait_until_told(*callers)
    for each in callers:
        assert (each.heard, each.rows) == (each.its_own, [(1, 1)])
