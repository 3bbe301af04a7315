"""Clients that hold on: no message, no reading, a stream that stays open. Each delays no call but its own."""

import contextlib
import signal
import struct
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from brewctl.lifecycle import wait_until
from brewctl.limits import Limits
from tests.conftest import Rig, limited
from tests.integration.grpc_tools import SERVICE, Service, answer, dialled, order, rows_of, somebody
from tests.integration.held_node import held_node
from tests.integration.http2_tools import DATA, RST_STREAM, by_hand, message
from tests.integration.kafka_tools import finish, refused_connections

OK, LATE = grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
NO_MESSAGE = f"no message came within {Limits().create_s:g} s"
PATIENCE_S = 60.0  # of a client that would wait for ever


@contextlib.contextmanager
def silence() -> Iterator[Any]:
    """Requests of a client that never sends one, until the end of the block."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        over.wait()
        yield from ()

    try:
        yield requests
    finally:
        over.set()


@contextlib.contextmanager
def calls_without_a_message(address: str, method: str, count: int) -> Iterator[list[Any]]:
    """Open calls by a client that is well, and answers pings, and whose messages never come."""
    with silence() as requests, grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(method)
        yield [call(requests(), timeout=PATIENCE_S) for _ in range(count)]


def ends(calls: list[Any]) -> set[grpc.StatusCode]:
    """How the server ends the calls, once all have ended."""
    answers = [answer(lambda call=call: list(call)) for call in calls]  # type: ignore[misc]
    assert not any(each.code is LATE and each.details != NO_MESSAGE for each in answers), "their clients ended them"
    return {each.code for each in answers}


def is_well(service: Service) -> None:
    """Every kind of call is answered, to a client that does not hold on."""
    created = service.create(timeout=20)
    assert created.code is OK, created
    assert service.get(created.response.order_id).code is OK
    assert service.health().response.status == SERVING
    assert SERVICE in ProtoReflectionDescriptorDatabase(service.channel).get_services()
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(
        health_pb2.HealthCheckRequest(service=SERVICE), timeout=20
    )
    assert next(watch).status == SERVING
    watch.cancel()


# A message that never comes


def test_calls_whose_message_never_comes_end_and_delay_nobody(service: Service) -> None:
    methods = (
        *(f"/{SERVICE}/Create", f"/{SERVICE}/Get", f"/{HEALTH}/Check", f"/{HEALTH}/Watch"),
        f"/{REFLECTION}/ServerReflectionInfo",
    )
    with contextlib.ExitStack() as stack:
        of_each = [stack.enter_context(calls_without_a_message(service.address, method, 64)) for method in methods]
        for _ in range(3):
            is_well(service)
        assert not any(call.done() for calls in of_each for call in calls), "they were open all the time"
        assert [ends(calls) for calls in of_each] == [{LATE}] * len(methods)
    is_well(service)


@pytest.mark.parametrize("method", [f"/{SERVICE}/NoSuchMethod", "/no.such.Service/Create"])
def test_calls_of_a_method_that_is_not_there_end_without_a_message(service: Service, method: str) -> None:
    with calls_without_a_message(service.address, method, 64) as calls:
        assert ends(calls) == {grpc.StatusCode.UNIMPLEMENTED}
    is_well(service)


def test_calls_that_held_on_are_one_line_of_the_log(rig: Rig) -> None:
    node, address = rig.serve()
    with calls_without_a_message(address, f"/{SERVICE}/Create", 32) as calls:
        assert ends(calls) == {LATE}
    assert finish(node) == 0
    log = node.log.read_text()
    assert 1 <= log.count("event=calls_ended") <= 2, log
    assert "without_message=" in log


def test_of_too_many_calls_that_wait_the_oldest_make_room(rig: Rig) -> None:
    with held_node(rig, limited(rig.settings, create_s=60.0, waiting_calls=16)) as node:
        node.writer.begin()
        with calls_without_a_message(node.client.address, f"/{SERVICE}/Create", 48) as calls:
            wait_until("room", lambda: sum(call.done() for call in calls) == 32, timeout_s=20)
            is_well(node.client)
            open_still = [call for call in calls if not call.done()]
            gone = [call for call in calls if call.done()]
            assert ends(gone) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert 8 <= len(open_still) <= 16  # each call of ours may have taken the place of one


def test_clients_that_fall_silent_within_a_call_delay_nobody_and_are_hung_up_on(service: Service) -> None:
    # After its headers, or after announcing a message: that makes gRPC send a ping of its own, which is not answered.
    beginnings = [b"", struct.pack(">BI", 0, 100)] * 16
    with contextlib.ExitStack() as calls:
        clients = [calls.enter_context(by_hand(service.address)) for _ in beginnings]
        for client, begun in zip(clients, beginnings, strict=True):
            client.call(f"/{SERVICE}/Create", data=begun)
        is_well(service)
        for client in clients:
            client.socket.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                while client.socket.recv(4096):
                    pass  # until the server hangs up


def test_a_message_that_can_not_be_read_is_bad_input(service: Service) -> None:
    for method in (f"/{SERVICE}/Create", f"/{SERVICE}/Get", f"/{HEALTH}/Check", f"/{HEALTH}/Watch"):
        call = service.channel.stream_stream(method)
        assert ends([call(iter([b"\xff\xff\xff"]), timeout=PATIENCE_S)]) == {grpc.StatusCode.INVALID_ARGUMENT}
        assert ends([call(iter([]), timeout=PATIENCE_S)]) == {grpc.StatusCode.INVALID_ARGUMENT}, "none at all"


# An answer that is not read


def test_an_answer_that_is_not_read_ends_with_its_time_and_delays_nobody(service: Service) -> None:
    customer = somebody()
    with contextlib.ExitStack() as calls:
        clients = [calls.enter_context(by_hand(service.address, window=0)) for _ in range(32)]
        for client in clients:
            client.attend()
            client.call(
                f"/{SERVICE}/Create", data=message(order(customer_id=customer).SerializeToString()), complete=True
            )
        wait_until("their orders", lambda: rows_of(service.rig, customer) == (32, 32), timeout_s=20)
        is_well(service)
        for client in clients:
            wait_until("the end of the call", lambda client=client: client.came(RST_STREAM), timeout_s=30)  # type: ignore[misc]
            assert not client.came(DATA)


# Watchers of health


def test_watchers_that_hang_up_at_an_outage_stop_nobody(rig: Rig, servers: dict[str, str]) -> None:
    watchers = 60  # telling so many takes longer than the first ones need to hang up
    node, address = rig.serve("order-watched")
    heard: list[int] = []

    def watch() -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            about = health_pb2.HealthCheckRequest(service=SERVICE)
            call = health_pb2_grpc.HealthStub(channel).Watch(about, timeout=120)
            for told in call:
                heard.append(told.status)
                if told.status == NOT_SERVING:
                    call.cancel()
                    return

    threads = [threading.Thread(target=watch, daemon=True) for _ in range(watchers)]
    with dialled(rig, address) as service:
        for thread in threads:
            thread.start()
        wait_until("watchers", lambda: heard.count(SERVING) == watchers, timeout_s=20)
        with refused_connections(rig, servers, node.name):
            wait_until("the news", lambda: heard.count(NOT_SERVING) == watchers, timeout_s=30, every_s=0.5)
            assert service.create(timeout=20).code is grpc.StatusCode.UNAVAILABLE
        wait_until("a healthy service", lambda: service.health().response.status == SERVING, timeout_s=20)
        is_well(service)
    for thread in threads:
        thread.join(20)
    assert finish(node) == 0
    assert "event=database_back" in node.log.read_text()


def test_a_watcher_that_reads_nothing_delays_nobody(rig: Rig, servers: dict[str, str]) -> None:
    node, address = rig.serve("order-watched")
    with dialled(rig, address) as service, contextlib.ExitStack() as watching:
        for _ in range(4):
            watcher = watching.enter_context(by_hand(address, window=0))
            watcher.attend()
            watcher.call(f"/{HEALTH}/Watch", data=asked(SERVICE), complete=True)
        is_well(service)
        with refused_connections(rig, servers, node.name):
            wait_until("an unhealthy service", lambda: service.health().response.status == NOT_SERVING, timeout_s=20)
        wait_until("a healthy service", lambda: service.health().response.status == SERVING, timeout_s=20)
        is_well(service)
        assert finish(node) == 0


def asked(service: str) -> bytes:
    return message(health_pb2.HealthCheckRequest(service=service).SerializeToString())


def test_a_slow_watcher_hears_the_newest_status_when_it_reads_again(rig: Rig) -> None:
    with held_node(rig) as node, by_hand(node.client.address, window=0) as watcher:
        watcher.attend()
        watcher.call(f"/{HEALTH}/Watch", data=asked(SERVICE), complete=True)
        statuses = [SERVING]

        def told() -> list[int]:
            return [health_pb2.HealthCheckResponse.FromString(each).status for each in watcher.messages()]

        wait_until("a watcher", lambda: node.server.watchers == 1, timeout_s=20)
        for there in (False, True, False, True, False):
            node.server.tell_health(there)
        watcher.grant(1000)
        statuses.append(NOT_SERVING)
        wait_until("both statuses", lambda: told() == statuses, timeout_s=20)
        node.server.tell_health(there=True)
        statuses.append(SERVING)
        wait_until("the third", lambda: told() == statuses, timeout_s=20)


def test_watchers_are_bounded_and_leave_their_places(rig: Rig) -> None:
    with held_node(rig, limited(rig.settings, health_watchers=2)) as node:
        stub = health_pb2_grpc.HealthStub(node.client.channel)

        def watch() -> Any:
            return stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=60)

        first, second = watch(), watch()
        assert {next(first).status, next(second).status} == {health_pb2.HealthCheckResponse.SERVICE_UNKNOWN}
        assert answer(lambda: next(watch())).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        wait_until("a place", lambda: answer(lambda: next(watch())).code is OK, timeout_s=20)


def test_health_lists_what_it_knows(service: Service) -> None:
    listed = health_pb2_grpc.HealthStub(service.channel).List(health_pb2.HealthListRequest(), timeout=20)
    assert {name: known.status for name, known in listed.statuses.items()} == {"": SERVING, SERVICE: SERVING}


# Streams of reflection


def test_streams_of_reflection_that_stay_open_delay_nobody(service: Service) -> None:
    asked_for = reflection_pb2.ServerReflectionRequest(list_services="")
    with silence() as requests:

        def one_question() -> Iterator[Any]:
            yield asked_for
            yield from requests()

        stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
        streams = [stub.ServerReflectionInfo(one_question(), timeout=PATIENCE_S) for _ in range(16)]
        assert all(next(stream).list_services_response.service for stream in streams)
        is_well(service)
        assert ends(streams) == {OK}, "the server ends a stream that asks nothing more"


# A stop


def test_clients_that_hold_on_do_not_hold_up_a_stop(rig: Rig) -> None:
    node, address = rig.serve()
    with (
        calls_without_a_message(address, f"/{SERVICE}/Create", 20) as silent,
        calls_without_a_message(address, f"/{REFLECTION}/ServerReflectionInfo", 20) as streams,
        dialled(rig, address) as service,
        by_hand(address, window=0) as blind,
    ):
        stub = health_pb2_grpc.HealthStub(service.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE_S)
        assert next(watch).status == SERVING
        blind.attend()
        blind.call(f"/{HEALTH}/Watch", data=asked(SERVICE), complete=True)
        is_well(service)
        node.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert answer(lambda: next(watch)).code is grpc.StatusCode.UNAVAILABLE
        assert ends([*silent, *streams]) == {grpc.StatusCode.UNAVAILABLE}
        assert node.ended(within_s=30) == 0


# An exception


def test_an_exception_ends_its_own_call_with_a_line(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_node(rig) as node:
        node.writer.begin()

        def fail(*_arguments: object, **_named: object) -> None:
            raise RuntimeError("something unforeseen")

        for broken in ("brewctl.delivery.orders.acceptance.accept", "brewctl.delivery.orders.store.get"):
            with monkeypatch.context() as patch:
                patch.setattr(broken, fail)
                failed = node.client.create() if broken.endswith("accept") else node.client.get(str(uuid.uuid4()))
                assert failed.code is grpc.StatusCode.INTERNAL, failed
            is_well(node.client)
    assert "something unforeseen" in capsys.readouterr().out
