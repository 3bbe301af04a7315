"""What a gRPC client may send, and what it reads back, against a real `brewctl serve order`."""

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from brewctl.proto import orders_pb2
from tests.integration.grpc_tools import (
    PARENT,
    SERVICE,
    TRACE,
    Service,
    answer,
    event_of,
    order,
    rows,
    rows_of,
    somebody,
)

# Create and Get


def test_an_order_is_answered_with_its_id_and_read_back(service: Service) -> None:
    customer = somebody()
    before = datetime.now(UTC)
    created = service.create(customer_id=customer, amount_cents=1234, currency="JPY").response
    assert str(uuid.UUID(created.order_id)) == created.order_id
    assert created.status == orders_pb2.ORDER_STATUS_NEW
    read = service.get(created.order_id).response.order
    assert (read.order_id, read.customer_id, read.amount_cents, read.currency, read.status) == (
        created.order_id,
        customer,
        1234,
        "JPY",
        orders_pb2.ORDER_STATUS_NEW,
    )
    hour = timedelta(hours=1)  # a clock read elsewhere, in any time zone but UTC, would be off by more
    assert before - hour < read.created_at.ToDatetime(tzinfo=UTC) < before + hour
    assert event_of(service.rig, created.order_id).created_at == read.created_at
    assert rows_of(service.rig, customer) == (1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"amount_cents": 1},
        {"amount_cents": 10**12},
        {"customer_id": "x"},
        {"customer_id": "é" * 128},
        {"customer_id": "☕" * 128},
        {"customer_id": "'; DROP TABLE orders; --"},
        {"idempotency_key": "k" * 255},
    ],
    ids=lambda fields: next(iter(fields)) + f"-{str(next(iter(fields.values())))[:8]}",
)
def test_the_edges_of_good_input_are_taken(service: Service, fields: dict[str, Any]) -> None:
    created = service.create(**fields)
    assert created.code is grpc.StatusCode.OK, created.details
    sent, read = order(**fields), service.get(created.response.order_id).response.order
    assert (read.customer_id, read.amount_cents) == (sent.customer_id, sent.amount_cents)


@pytest.mark.parametrize(
    "order_id",
    [
        str(uuid.uuid4()),
        "",
        "order-1",
        "not a uuid",
        "\x00",
        "é" * 40_000,
        # Python's uuid.UUID() takes these, PostgreSQL's uuid does not.
        f"urn:uuid:{uuid.uuid4()}",
        f"{{{uuid.uuid4()}",
        f"{uuid.uuid4()}-",
    ],
    ids=["unknown", "empty", "short", "words", "nul", "long", "urn", "open-brace", "stray-dash"],
)
def test_get_of_no_order_is_not_found(service: Service, order_id: str) -> None:
    got = service.get(order_id)
    assert got.code is grpc.StatusCode.NOT_FOUND, got


# Bad input


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"amount_cents": 0}, "amount_cents"),
        ({"amount_cents": -1}, "amount_cents"),
        ({"amount_cents": -(2**63)}, "amount_cents"),
        ({"amount_cents": 10**12 + 1}, "amount_cents"),
        ({"amount_cents": 2**63 - 1}, "amount_cents"),
        ({"currency": ""}, "currency"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "ZZZ"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"currency": "E\x00R"}, "currency"),
        ({"customer_id": ""}, "customer_id"),
        ({"customer_id": "c" * 129}, "customer_id"),
        ({"customer_id": "a\x00b"}, "customer_id"),
        ({"customer_id": "a\nb"}, "customer_id"),
        ({"customer_id": "a\x7f"}, "customer_id"),
        ({"customer_id": "a\x85b"}, "customer_id"),
        ({"idempotency_key": "k" * 256}, "idempotency_key"),
        ({"idempotency_key": "k\x00"}, "idempotency_key"),
    ],
)
def test_bad_input_is_refused_by_name_and_writes_nothing(service: Service, fields: dict[str, Any], named: str) -> None:
    before = rows(service.rig)
    refused = service.create(**fields)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    others = {"amount_cents", "currency", "customer_id", "idempotency_key", "x-tenant-id"} - {named}
    assert named in refused.details
    assert not any(other in refused.details for other in others), refused.details
    assert rows(service.rig) == before


@pytest.mark.parametrize("tenant", ["", "a b", "a/b", "t" * 65, "tenant!"])
def test_a_bad_tenant_is_refused_by_name_and_writes_nothing(service: Service, tenant: str) -> None:
    before = rows(service.rig)
    refused = service.create(metadata=(("x-tenant-id", tenant),))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "x-tenant-id" in refused.details
    assert rows(service.rig) == before


def test_every_violation_is_named_at_once(service: Service) -> None:
    before = rows(service.rig)
    refused = service.create(
        customer_id="\x00" * 200,
        amount_cents=0,
        currency="?",
        idempotency_key="k" * 256,
        metadata=(("x-tenant-id", "no tenant"),),
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    for violation in (
        "customer_id must have 1 to 128 characters",
        "customer_id must not contain control characters",
        "amount_cents",
        "currency",
        "idempotency_key",
        "x-tenant-id",
    ):
        assert violation in refused.details
    assert rows(service.rig) == before


@pytest.mark.parametrize("size", [100 * 1024, 4 * 1024 * 1024])
def test_a_request_too_large_for_kafka_is_refused_and_the_server_goes_on(service: Service, size: int) -> None:
    request = order(customer_id="c" * size)
    before = rows(service.rig)
    refused = answer(lambda: service.stub.Create(request, timeout=30))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"request has {request.ByteSize()} bytes" in refused.details
    assert len(refused.details) < 1000
    assert rows(service.rig) == before
    assert service.create().code is grpc.StatusCode.OK


# Trace and tenant


@pytest.mark.parametrize(
    "traceparent",
    [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what-the-future-brings"],
)
def test_a_trace_goes_on(service: Service, traceparent: str) -> None:
    created = service.create(metadata=(("traceparent", traceparent), ("x-tenant-id", "Caffe.2_go-")))
    event = event_of(service.rig, created.response.order_id)
    assert (event.trace_id, event.tenant_id) == (TRACE, "Caffe.2_go-")


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "garbage",
        TRACE,
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01" * 100,
    ],
)
def test_a_malformed_trace_is_replaced_by_a_new_one(service: Service, traceparent: str | None) -> None:
    metadata = () if traceparent is None else (("traceparent", traceparent),)
    traces = {event_of(service.rig, service.create(metadata=metadata).response.order_id).trace_id for _ in range(2)}
    assert len(traces) == 2
    assert TRACE not in traces
    assert all(re.fullmatch("[0-9a-f]{32}", trace) and set(trace) != {"0"} for trace in traces)


def test_the_event_says_what_the_order_says(service: Service) -> None:
    customer = somebody()
    created = service.create(customer_id=customer, amount_cents=10**12, currency="CHF").response
    event = event_of(service.rig, created.order_id)
    read = service.get(created.order_id).response.order
    for name in ("order_id", "customer_id", "amount_cents", "currency", "status", "created_at"):
        assert getattr(event, name) == getattr(read, name), name
    assert event.tenant_id == "brew"


# Around the service


def test_reflection_lists_the_service(service: Service) -> None:
    reflected = ProtoReflectionDescriptorDatabase(service.channel)
    assert SERVICE in reflected.get_services()
    described = reflected.FindFileContainingSymbol(SERVICE)
    assert {method.name for method in described.service[0].method} == {"Create", "Get", "Cancel"}


def test_health_is_serving(service: Service) -> None:
    for name in ("", SERVICE):
        assert service.health(name).response.status == health_pb2.HealthCheckResponse.SERVING
    assert service.health("no.such.Service").code is grpc.StatusCode.NOT_FOUND
