"""One key, one order: whoever asks, however often, wherever."""

import contextlib
import json
import os
import pty
import shlex
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from brewctl.client import OrderClient
from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2
from tests.conftest import begin
from tests.integration.grpc_tools import BROKEN, Answer, Service, dialled, failing, rows, rows_of, somebody
from tests.tcp_proxy import proxied


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


# The client's side


def test_an_answer_that_is_lost_after_the_commit_is_asked_for_again(service: Service) -> None:
    customer, port = somebody(), int(service.address.rpartition(":")[2])
    with (
        proxied("127.0.0.1", port) as proxy,
        OrderClient([f"127.0.0.1:{proxy.port}"], timeout_s=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.create("somebody else", amount_cents=1, currency="EUR")  # to be connected
        proxy.swallowing.set()
        order = pool.submit(client.create, customer, amount_cents=1, currency="EUR")
        wait_until("a committed order", lambda: rows_of(service.rig, customer) == (1, 1), timeout_s=20)
        proxy.swallowing.clear()
        proxy.hang_up()
        read = service.get(order.result(30)).response.order
    assert read.customer_id == customer
    assert rows_of(service.rig, customer) == (1, 1)


def create_order(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return service.rig.brewctl("create-order", "--addr", service.address, *arguments)


def keys_of(service: Service, customer: str) -> list[tuple[object, ...]]:
    """Tenant, key and id of a customer's orders."""
    return service.rig.connection.execute(
        "SELECT tenant_id, idempotency_key, id::text FROM orders WHERE customer_id = %s ORDER BY created_at",
        (customer,),
    ).fetchall()


def test_create_order_makes_a_key_for_each_order(service: Service) -> None:
    customer = somebody()
    done = create_order(service, "--customer", customer, "--count", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({order["idempotency_key"] for order in shown}) == 3
    assert keys_of(service, customer) == [("brew", order["idempotency_key"], order["order_id"]) for order in shown]


def test_create_order_with_a_key_finds_the_orders_that_it_made(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    several = ("--customer", customer, "--idempotency-key", key, "--tenant", "tea", "--count", "3")
    first, again = create_order(service, *several), create_order(service, *several)
    assert (first.returncode, again.returncode, again.stdout) == (0, 0, first.stdout)
    assert keys_of(service, customer) == [
        ("tea", f"{key}-{number}", order_id) for number, order_id in enumerate(first.stdout.split(), 1)
    ]
    other = create_order(service, "--customer", "other", "--idempotency-key", f"{key}-2", "--tenant", "tea")
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.startswith("brewctl: order-service ")
    assert "ALREADY_EXISTS" in other.stderr
    assert other.stderr.count("\n") == 1
    assert create_order(service, "--customer", customer, "--idempotency-key", key).stdout.strip() not in first.stdout


def test_create_order_goes_on_after_a_failed_commit_and_says_so_once(service: Service) -> None:
    customer = somebody()
    controller, terminal = pty.openpty()
    try:
        with failing(service.rig, BROKEN, at_commit=True):
            order = ("--addr", service.address, "--customer", customer, "--timeout", "60")
            asking = begin("create-order", *order, env=service.rig.env, stderr=terminal)
            os.close(terminal)
            told = os.read(controller, 10_000).decode()
        order_id, _ = asking.communicate(timeout=60)
        with contextlib.suppress(OSError):  # nobody has the terminal any more
            told += os.read(controller, 10_000).decode()
    finally:
        os.close(controller)
    assert asking.returncode == 0
    assert [row[2] for row in keys_of(service, customer)] == [order_id.strip()]
    assert "INTERNAL: the commit failed" in told
    assert told.count("trying again") == told.count("\n") == 1


def test_create_order_that_never_hears_names_the_key_and_what_to_run(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    with failing(service.rig, BROKEN, at_commit=True):
        failed = create_order(service, "--customer", customer, "--idempotency-key", key, "--timeout", "0.5")
    assert (failed.returncode, failed.stdout) == (3, "")
    (line,) = failed.stderr.splitlines()
    command = line.partition("`")[2].partition("`")[0]
    assert f"--idempotency-key {key} " in command
    asked = service.rig.brewctl(*shlex.split(command)[1:])  # as it is: it names the address too
    assert asked.returncode == 0
    assert keys_of(service, customer) == [("brew", key, asked.stdout.strip())]
