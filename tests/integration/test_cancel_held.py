"""`Cancel` of an order whose row another session holds: it waits, and takes nothing from other calls."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psycopg
import pytest

from brewctl.delivery.orders import cancellation
from brewctl.delivery.orders.cancellation import Cancellation
from tests.conftest import Rig, open_rig
from tests.integration.grpc_tools import Service, dialled
from tests.integration.held_node import held_node
from tests.integration.test_cancel import BOTH, NEW, ONE, created, events_of, state_of

OK = grpc.StatusCode.OK


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all tests here: each has orders of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("cancel")) as rig:
        yield rig


@pytest.fixture(scope="module")
def service(rig: Rig) -> Iterator[Service]:
    with dialled(rig, rig.serve()[1]) as service:
        yield service


@contextlib.contextmanager
def held(rig: Rig, order_id: str) -> Iterator[None]:
    """Another session holds the order's row meanwhile."""
    with psycopg.connect(rig.settings.database_url) as other:
        other.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        yield
        other.rollback()


def test_an_order_that_another_session_holds_is_cancelled_once_it_is_free(rig: Rig, service: Service) -> None:
    order_id = created(service)
    with ThreadPoolExecutor(1) as caller:
        with held(rig, order_id):
            call = caller.submit(service.cancel, order_id)
            rig.wait("a cancel at the lock", lambda: _waits_for_a_row(rig))
        assert call.result().code is OK
    assert events_of(rig, order_id) == BOTH


def test_while_one_order_is_held_others_are_made_read_and_cancelled(rig: Rig, service: Service) -> None:
    order_id, other = created(service), created(service)
    with ThreadPoolExecutor(40) as callers:
        with held(rig, order_id):
            calls = [callers.submit(service.cancel, order_id, timeout=20) for _ in range(40)]
            rig.wait("a cancel at the lock", lambda: _waits_for_a_row(rig))
            assert service.create(timeout=5).code is OK
            assert service.get(order_id).code is OK
            assert service.cancel(other, timeout=5).code is OK
            ended = {call.result().code for call in calls}
        assert ended == {grpc.StatusCode.UNAVAILABLE}, "each after create_s"
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)


@contextlib.contextmanager
def later_tries_held(monkeypatch: pytest.MonkeyPatch, order_id: str) -> Iterator[Callable[[], tuple[int, int]]]:
    """Every try to cancel this order but its callers' first ones lasts until the end; count first tries, and those."""
    right, release = cancellation.cancel, threading.Event()
    first: list[Cancellation] = []
    held_now: list[Cancellation] = []

    def cancel(connection: Any, wish: Cancellation, **bounds: Any) -> Any:
        if wish.order_id == order_id:
            if any(each is wish for each in first):
                held_now.append(wish)
                release.wait(60)
            else:
                first.append(wish)
        return right(connection, wish, **bounds)

    monkeypatch.setattr(cancellation, "cancel", cancel)
    try:
        yield lambda: (len(first), len(held_now))
    finally:
        release.set()


def test_cancels_that_wait_leave_the_threads_of_first_tries_free(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait, and however long a try of theirs takes: other orders are cancelled, and made, meanwhile."""
    threads = rig.settings.limits.cancelling_threads
    with held_node(rig) as node, ThreadPoolExecutor(threads * 4) as callers:
        node.writer.begin()
        order_id, other = created(node.client), created(node.client)
        with held(rig, order_id), later_tries_held(monkeypatch, order_id) as tries:
            calls = [callers.submit(node.client.cancel, order_id, timeout=60) for _ in range(threads * 2)]
            rig.wait("every thread of later tries at work", lambda: tries()[1] == threads // 2)
            assert node.client.cancel(other, timeout=20).code is OK
            assert node.client.get(other).code is OK
            assert node.client.create(timeout=20).code is OK
            assert tries()[1] == threads // 2
        assert {call.result().code for call in calls} <= {OK, grpc.StatusCode.UNAVAILABLE}


def test_an_order_that_is_known_to_be_held_has_no_more_first_tries(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the cancels of other orders wait for none of the tries that it would fail."""
    threads = rig.settings.limits.cancelling_threads
    with held_node(rig) as node, ThreadPoolExecutor(threads * 4) as callers:
        node.writer.begin()
        order_id, other = created(node.client), created(node.client)
        with held(rig, order_id), later_tries_held(monkeypatch, order_id) as tries:
            first = [callers.submit(node.client.cancel, order_id, timeout=60) for _ in range(threads // 2)]
            rig.wait("every thread of later tries at work", lambda: tries() == (threads // 2, threads // 2))
            more = [callers.submit(node.client.cancel, order_id, timeout=60) for _ in range(threads)]
            rig.wait("further cancels in hand", lambda: node.admission.in_hand == len(first) + len(more))
            assert node.client.cancel(other, timeout=20).code is OK
            assert tries() == (threads // 2, threads // 2)
        assert {call.result().code for call in [*first, *more]} <= {OK, grpc.StatusCode.UNAVAILABLE}


def _waits_for_a_row(rig: Rig) -> bool:
    found = rig.connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query LIKE '%%FOR NO KEY UPDATE%%'"
    )
    return found.fetchone() is not None
