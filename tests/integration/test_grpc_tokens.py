"""An order-service with tokens, as a process: each tenant sees its own orders alone, and no token is seen anywhere."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2
from tests.certificates import put
from tests.conftest import Rig, begin
from tests.integration.grpc_tools import Answer, Service, answer, dialled, event_of, rows

BREW, ACME, NEW = ("planted-" + letter * 32 for letter in "bac")
UNAUTHENTICATED, DENIED, NOT_FOUND, OK = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OK,
)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    put(path, f"brew {BREW}\nacme {ACME}\n", mode=0o600)
    return path


@pytest.fixture
def node(rig: Rig, tokens: Path) -> Node:
    return serve(rig, tokens)


@pytest.fixture
def service(rig: Rig, node: Node) -> Iterator[Service]:
    with dialled(rig, node.address) as service:
        yield service


def serve(rig: Rig, tokens: Path, *options: str) -> Node:
    return rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher", "--tokens", str(tokens), *options)


def bearer(token: str, **more: str) -> tuple[tuple[str, str], ...]:
    return ("authorization", f"Bearer {token}"), *((name.replace("_", "-"), value) for name, value in more.items())


def get(service: Service, order_id: str, token: str) -> Answer:
    request = orders_pb2.GetRequest(order_id=order_id)
    return answer(lambda: service.stub.Get(request, metadata=bearer(token), timeout=30))


def unlogged(node: Node) -> bool:
    return b"planted" not in node.log.read_bytes() and "planted" not in "\n".join(node.lines)


def test_the_token_says_whose_an_order_is(rig: Rig, service: Service) -> None:
    made = service.create(metadata=bearer(ACME))
    assert made.code is OK
    assert event_of(rig, made.response.order_id).tenant_id == "acme"
    assert service.create(metadata=bearer(ACME, x_tenant_id="acme")).code is OK
    # The scheme's name is of any case: RFC 9110.
    assert service.create(metadata=(("authorization", f"bearer {ACME}"),)).code is OK
    found = rig.connection.execute("SELECT DISTINCT tenant_id FROM orders")
    assert found.fetchall() == [("acme",)]


@pytest.mark.parametrize(
    ("metadata", "code", "said"),
    [
        ((), UNAUTHENTICATED, "no token: send `authorization: Bearer TOKEN`"),
        (bearer("nobodys-" + "x" * 32), UNAUTHENTICATED, "the token is not known here"),
        (bearer(ACME[:-1]), UNAUTHENTICATED, "the token is not known here"),
        (bearer(""), UNAUTHENTICATED, "the token is not known here"),
        ((("authorization", ACME),), UNAUTHENTICATED, "no bearer token"),
        ((("authorization", f"Basic {ACME}"),), UNAUTHENTICATED, "no bearer token"),
        ((*bearer(BREW), *bearer(ACME)), UNAUTHENTICATED, "two tokens"),
        (bearer(ACME, x_tenant_id="brew"), DENIED, "x-tenant-id is not the tenant of the token"),
        ((*bearer(ACME, x_tenant_id="acme"), ("x-tenant-id", "brew")), DENIED, "x-tenant-id is not the tenant"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else str(value)[:20],
)
def test_who_is_not_let_in(
    rig: Rig, node: Node, service: Service, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode, said: str
) -> None:
    told = (
        service.create(metadata=metadata),
        service.cancel(str(uuid.uuid4()), metadata=metadata),
        answer(lambda: service.stub.Get(orders_pb2.GetRequest(), metadata=metadata, timeout=30)),
    )
    for each in told:
        assert each.code is code
        assert said in each.details
        assert "planted" not in each.details
    assert rows(rig) == (0, 0)
    assert unlogged(node)


def test_an_order_is_there_for_its_own_tenant_alone(rig: Rig, service: Service) -> None:
    made = service.create(metadata=bearer(ACME)).response.order_id
    nowhere = str(uuid.uuid4())
    for order_id in (made, nowhere):
        told = get(service, order_id, BREW), service.cancel(order_id, metadata=bearer(BREW))
        assert [each.code for each in told] == [NOT_FOUND, NOT_FOUND]
        assert [each.details for each in told] == [f"no order {order_id!r}"] * 2
    assert get(service, made, ACME).response.order.status == orders_pb2.ORDER_STATUS_NEW
    assert rows(rig) == (1, 1)
    assert service.cancel(made, metadata=bearer(ACME)).code is OK
    assert get(service, made, ACME).response.order.status == orders_pb2.ORDER_STATUS_CANCELLED


def test_an_idempotency_key_is_its_tenants(service: Service) -> None:
    first, again, others = (
        service.create(metadata=bearer(token), idempotency_key="key-1").response.order_id
        for token in (ACME, ACME, BREW)
    )
    assert first == again != others


def test_probes_need_no_token_and_reflection_does(service: Service) -> None:
    assert service.health().response.status == health_pb2.HealthCheckResponse.SERVING
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
    assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()

    def services(metadata: tuple[tuple[str, str], ...]) -> Answer:
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
        return answer(lambda: list(stub.ServerReflectionInfo(asked, metadata=metadata, timeout=30)))

    assert services(()).code is UNAUTHENTICATED
    assert services(bearer(ACME)).code is OK


def test_a_change_of_the_file_counts_without_a_restart(node: Node, service: Service, tokens: Path) -> None:
    put(tokens, f"brew {BREW}\nacme {ACME}\nacme {NEW}\n", mode=0o600)
    wait_until("the new token", lambda: service.create(metadata=bearer(NEW)).code is OK, timeout_s=60)
    assert service.create(metadata=bearer(ACME)).code is OK
    put(tokens, f"brew {BREW}\nacme {NEW}\n", mode=0o600)
    gone = f"no more {ACME[-4:]}"
    wait_until(gone, lambda: service.create(metadata=bearer(ACME)).code is UNAUTHENTICATED, timeout_s=60)
    assert service.create(metadata=bearer(NEW)).code is OK
    # Half of it, then none.
    put(tokens, f"brew {BREW}\nacme {NEW[:20]}")
    wait_until("a warning", lambda: "tokens_unusable" in node.log.read_text(), timeout_s=60)
    assert service.create(metadata=bearer(NEW)).code is OK
    tokens.unlink()
    wait_until("another", lambda: node.log.read_text().count("tokens_unusable") == 2, timeout_s=60)
    assert service.create(metadata=bearer(NEW)).code is OK
    assert "does not end with a newline" in node.log.read_text()
    assert unlogged(node)


def test_the_client_sends_it_and_nobody_sees_it(rig: Rig, tokens: Path, tmp_path: Path) -> None:
    node = serve(rig, tokens, "--workers", "2")
    mine = tmp_path / "token"
    put(mine, f"{ACME}\n", mode=0o600)
    for given in ({"BREW_ORDER_TOKEN": ACME}, {"BREW_ORDER_TOKEN_FILE": str(mine)}):
        asked = ("create-order", "--customer", "c1", "--count", "200", "--addr", node.address)
        with begin("-v", *asked, env={**rig.env, **given}) as process:
            processes = [psutil.Process(process.pid), *psutil.Process(node.process.pid).children(recursive=True)]
            for each in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    assert "planted" not in " ".join(each.cmdline())
            told, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert len(told.split()) == 200
        assert "planted" not in told + errors
    assert unlogged(node)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ({}, (), "answered UNAUTHENTICATED: no token"),
        ({"BREW_ORDER_TOKEN": NEW}, (), "answered UNAUTHENTICATED: the token is not known here"),
        ({"BREW_ORDER_TOKEN": ACME}, ("--tenant", "brew"), "answered PERMISSION_DENIED: x-tenant-id is not the tenant"),
    ],
    ids=["none", "unknown", "another tenant's"],
)
def test_the_command_says_why_it_is_refused(
    rig: Rig, node: Node, given: dict[str, str], options: tuple[str, ...], said: str
) -> None:
    asked = ("-v", "create-order", "--customer", "c1", "--addr", node.address, *options)
    with begin(*asked, env={**rig.env, **given}) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "planted" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("brewctl: ")]
    assert f"order-service {node.address} {said}" in line
    assert "BREW_ORDER_TOKEN" in line or "leave --tenant away" in line
    assert unlogged(node)


def test_doctor_sends_the_token(rig: Rig, node: Node) -> None:
    for token, verdict in ((ACME, "answers calls"), (NEW, "does not take the token: the token is not known here")):
        with begin("doctor", "--addr", node.address, env={**rig.env, "BREW_ORDER_TOKEN": token}) as process:
            told, errors = process.communicate(timeout=120)
        assert verdict in " ".join(told.split())
        assert "planted" not in told + errors


def test_tokens_that_all_may_read_are_said(rig: Rig, tokens: Path) -> None:
    tokens.chmod(0o644)
    node = serve(rig, tokens)
    assert f"chmod 600 {tokens}" in node.log.read_text()
    assert node.log.read_text().count("tokens_readable_by_all") == 1
