"""How an order node starts and ends."""

import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from brewctl.lifecycle import wait_until
from tests.conftest import Rig
from tests.integration.grpc_tools import (
    RETRY_AFTER_S,
    SEVERAL,
    Answer,
    Service,
    dialled,
    locked_orders,
    order,
    rows_of,
    somebody,
    wait_for_blocked,
)


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_a_busy_port_is_one_line_and_the_first_server_goes_on(service: Service) -> None:
    port = service.address.rpartition(":")[2]
    second = service.rig.brewctl("serve", "order", "--port", port, timeout=30)
    assert second.returncode == 1
    line = only_line(second.stderr)
    assert port in line
    assert "--port" in line
    assert second.stdout == ""
    assert service.create().code is grpc.StatusCode.OK


def test_without_tables_it_does_not_start(rig: Rig) -> None:
    rig.connection.execute("DROP TABLE orders, outbox")
    started = rig.brewctl("serve", "order", "--port", "0", timeout=30)
    assert started.returncode == 1
    assert "`brewctl db migrate`" in only_line(started.stderr)
    assert started.stdout == ""


def test_without_its_topic_it_does_not_start(service: Service) -> None:
    topic = f"{service.rig.settings.topic}-that-nobody-made"
    started = service.rig.brewctl("serve", "order", "--port", "0", "--topic", topic, timeout=30)
    assert started.returncode == 1
    line = only_line(started.stderr)
    assert topic in line
    assert "`brewctl topic create`" in line
    assert started.stdout == ""


def test_sigterm_answers_the_calls_in_hand_and_publishes_their_orders(rig: Rig) -> None:
    node, address = rig.serve()
    customer = somebody()
    with dialled(rig, address) as service:
        with locked_orders(rig):
            calls = [service.stub.Create.future(order(customer_id=customer)) for _ in range(SEVERAL)]
            wait_for_blocked(rig, 1)
            # Calls of one method are taken in their order: those before this one are in hand when it is answered.
            assert service.create(customer_id="").code is grpc.StatusCode.INVALID_ARGUMENT
            node.process.send_signal(signal.SIGTERM)
            # It drains: who comes now is refused.
            with dialled(rig, address) as late:
                answers: list[Answer] = []

                def refused() -> bool:
                    answers.append(late.create(customer_id="late", timeout=0.5))
                    return answers[-1].code is grpc.StatusCode.UNAVAILABLE

                with contextlib.suppress(TimeoutError):
                    wait_until("a server that refuses new calls", refused, timeout_s=4)
                assert answers[-1].code is grpc.StatusCode.UNAVAILABLE, (answers, node.log.read_text())
        ids = {call.result(30).order_id for call in calls}
    assert node.ended(within_s=30) == 0
    assert len(ids) == SEVERAL
    assert rows_of(rig, customer) == (SEVERAL, SEVERAL)
    assert rig.counts().outbox_unpublished == 0


def test_calls_that_come_while_it_stops_are_refused_with_a_reason(rig: Rig) -> None:
    callers = 12
    node, address = rig.serve()
    served = threading.Semaphore(0)

    def call_until_it_is_gone(_: int) -> list[Answer]:
        failed: list[Answer] = []
        with dialled(rig, address) as service:
            while not failed or "failed to connect" not in failed[-1].details:
                created = service.create()
                served.release()
                if created.code is not grpc.StatusCode.OK:
                    failed.append(created)
        return failed

    with ThreadPoolExecutor(callers) as pool:
        calling = [pool.submit(call_until_it_is_gone, number) for number in range(callers)]
        for _ in range(2 * callers):
            assert served.acquire(timeout=20)
        node.process.send_signal(signal.SIGTERM)
        failed = [answer for each in calling for answer in each.result(30)]
    assert node.ended(within_s=30) == 0
    # gRPC ends a call that comes while it closes as CANCELLED, which tells its caller nothing.
    assert {answer.code for answer in failed} == {grpc.StatusCode.UNAVAILABLE}, failed
    assert RETRY_AFTER_S in {answer.retry_after_s for answer in failed}
