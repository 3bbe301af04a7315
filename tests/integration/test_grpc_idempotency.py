"""One key, one order: whoever asks, however often, wherever."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from brewctl.proto import orders_pb2
from tests.integration.grpc_tools import Answer, Service, dialled, rows, rows_of, somebody


def test_the_same_key_and_body_return_the_first_order(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    answers = [service.create(customer_id=customer, idempotency_key=key).response for _ in range(3)]
    assert len({first.order_id for first in answers}) == 1
    assert {first.status for first in answers} == {orders_pb2.ORDER_STATUS_NEW}
    assert rows_of(service.rig, customer) == (1, 1)


@pytest.mark.parametrize("other", [{"customer_id": "bob"}, {"amount_cents": 451}, {"currency": "USD"}])
def test_the_same_key_with_another_body_already_exists(service: Service, other: dict[str, Any]) -> None:
    key = str(uuid.uuid4())
    first = service.create(idempotency_key=key).response
    before = rows(service.rig)
    assert service.create(idempotency_key=key, **other).code is grpc.StatusCode.ALREADY_EXISTS
    assert rows(service.rig) == before
    assert service.create(idempotency_key=key).response.order_id == first.order_id


def test_a_key_belongs_to_its_tenant(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    tenants = ((), (("x-tenant-id", "tea"),), (("x-tenant-id", "T" * 64),), (("x-tenant-id", "brew"),))

    def create() -> list[str]:
        return [
            service.create(customer_id=customer, idempotency_key=key, metadata=tenant).response.order_id
            for tenant in tenants
        ]

    ids = create()
    assert ids[0] == ids[3]  # `brew` is the tenant of those that name none
    assert len(set(ids)) == 3
    assert create() == ids
    assert rows_of(service.rig, customer) == (3, 3)


def test_without_a_key_every_call_is_an_order(service: Service) -> None:
    customer = somebody()
    assert len({service.create(customer_id=customer).response.order_id for _ in range(2)}) == 2
    assert rows_of(service.rig, customer) == (2, 2)


def test_two_replicas_racing_on_one_key_make_one_order(service: Service) -> None:
    threads, races = 20, 5
    start = threading.Barrier(threads)
    _, other_address = service.rig.serve("order-2")
    with dialled(service.rig, other_address) as other, ThreadPoolExecutor(threads) as pool:
        for race in range(races):
            customer, key = somebody(), str(uuid.uuid4())

            def create(turn: int, customer: str = customer, key: str = key) -> tuple[int, Answer]:
                start.wait(30)
                amount = 1 + turn // 2 % 2  # both bodies at both replicas
                replica = (service, other)[turn % 2]
                return amount, replica.create(customer_id=customer, idempotency_key=key, amount_cents=amount)

            answers = list(pool.map(create, range(threads)))
            assert rows_of(service.rig, customer) == (1, 1), f"race {race}"
            ids = {got.response.order_id for _, got in answers if got.code is grpc.StatusCode.OK}
            assert len(ids) == 1
            won = service.get(ids.pop()).response.order.amount_cents
            for amount, got in answers:
                expected = grpc.StatusCode.OK if amount == won else grpc.StatusCode.ALREADY_EXISTS
                assert got.code is expected, got
