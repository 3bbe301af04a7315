"""Events as the topic carries them: written, read back, and every kind of rubbish refused."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from brewctl.delivery import events
from brewctl.delivery.events import Event, Headers, UnreadableError
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, OrderCancelled, OrderCreated
from tests.unit.event_records import BOTH, CREATED, EVENT_ID, HEADERS, KEY, ORDER, ORDER_ID, PAYLOAD, headers, read

PARENT = f"00-{ORDER.trace_id}-00f067aa0ba902b7-01"
FURTHER = [("event-id", EVENT_ID.encode()), ("aggregate-seq", b"1"), ("traceparent", PARENT.encode())]


def event_of(headers: Headers, *, outbox_id: int = 42, event_id: str | None = None, seq: int | None = None) -> Any:
    """The order's event, as it must be read."""
    return Event(outbox_id, event_id, "order.created", KEY, seq, ORDER, PAYLOAD, headers, 1_000)


def test_the_key_is_the_aggregate() -> None:
    assert events.aggregate_id(ORDER_ID) == f"order-{ORDER_ID}"


def test_seven_headers_in_the_order_of_the_contract() -> None:
    assert events.order_headers(42, ORDER, node="order-1") == [
        ("outbox-id", b"42"),
        ("aggregate-id", KEY.encode()),
        ("publisher-node", b"order-1"),
        ("trace-id", b"4bf92f3577b34da6a3ce929d0e0e4736"),
        ("tenant-id", b"brew"),
        ("event-type", b"order.created"),
        ("content-type", b"application/x-protobuf"),
    ]


def test_three_more_follow_where_they_are_known() -> None:
    def named(**known: Any) -> Headers:
        return events.headers_for(42, KEY, "order.created", node="order-1", **known)

    everything = named(event_id=uuid.UUID(EVENT_ID), seq=1, traceparent=PARENT)
    assert everything[7:] == FURTHER
    assert [name for name, _ in everything[:7]] == [name for name, _ in HEADERS]
    assert named(event_id=uuid.UUID(EVENT_ID), seq=1)[7:] == FURTHER[:2]
    assert named(traceparent=PARENT)[7:] == FURTHER[2:]


def test_what_is_not_known_of_an_event_is_empty_and_a_content_type_is_the_rows_own() -> None:
    written = events.headers_for(1, "stock-1", "stock.counted", node="n", content_type="application/json")
    assert written[3:] == [
        ("trace-id", b""),
        ("tenant-id", b""),
        ("event-type", b"stock.counted"),
        ("content-type", b"application/json"),
    ]


def test_headers_are_utf_8() -> None:
    written = dict(events.headers_for(1, "order-ä", "order.created", tenant_id="€", node="кафе"))
    assert written["aggregate-id"] == b"order-\xc3\xa4"
    assert written["tenant-id"] == b"\xe2\x82\xac"
    assert written["publisher-node"].decode("utf-8") == "кафе"


def test_a_record_without_the_last_three_headers_is_read_as_before() -> None:
    assert read(PAYLOAD, HEADERS) == event_of(HEADERS)


def test_a_record_with_all_headers_is_read_with_its_ids() -> None:
    headers = [*HEADERS, *FURTHER]
    event = read(PAYLOAD, headers)
    assert event == event_of(headers, event_id=EVENT_ID, seq=1)
    assert event is not None
    assert (event.tenant_id, event.trace_id) == ("brew", ORDER.trace_id)


@pytest.mark.parametrize("left_out", range(3))
def test_each_of_the_last_three_may_be_missing(left_out: int) -> None:
    event = read(PAYLOAD, [*HEADERS, *FURTHER[:left_out], *FURTHER[left_out + 1 :]])
    assert event is not None
    assert (event.id, event.seq) == (EVENT_ID if left_out != 0 else None, 1 if left_out != 1 else None)


def test_an_event_id_is_written_in_one_way() -> None:
    event = read(PAYLOAD, [*HEADERS, ("event-id", EVENT_ID.upper().encode())])
    assert event is not None
    assert event.id == EVENT_ID


# The key


def test_where_the_key_is_missing_the_aggregate_is_the_key() -> None:
    for key in (None, b""):
        event = read(PAYLOAD, HEADERS, key=key)
        assert event is not None
        assert event.key == KEY


def test_the_key_counts_before_the_aggregate() -> None:
    event = read(PAYLOAD, HEADERS, key=b"another")
    assert event is not None
    assert event.key == "another"


# The types


CANCELLED = OrderCancelled(order_id=ORDER_ID, reason="too late", tenant_id="brew")


def test_a_cancelled_order_is_an_event_of_its_own_type() -> None:
    CANCELLED.cancelled_at.FromDatetime(datetime(2026, 5, 4, 3, 2, 1))  # noqa: DTZ001 - protobuf's are UTC
    written = events.headers_for(43, KEY, "order.cancelled", node="order-1", seq=2)
    event = read(CANCELLED.SerializeToString(), written, decoders=BOTH)
    assert event is not None
    assert (event.type, event.seq, event.data) == ("order.cancelled", 2, CANCELLED)
    assert event.occurred_at == datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    assert read(CANCELLED.SerializeToString(), written, decoders=CREATED) is None


def test_a_downstreams_own_decoder_reads_its_own_type_of_any_content() -> None:
    written = events.headers_for(1, "pay-1", "payment.received", node="n", content_type="application/json")
    event = read(b'{"cents": 5}', written, decoders={b"payment.received": bytes.decode})
    assert event is not None
    assert (event.type, event.data, event.raw) == ("payment.received", '{"cents": 5}', b'{"cents": 5}')
    assert event.occurred_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "its payload does not say when: its record"


def test_two_events_of_one_outbox_id_differ_in_their_event_id() -> None:
    first, second = (read(PAYLOAD, [*HEADERS, ("event-id", str(uuid.UUID(int=number)).encode())]) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert first.outbox_id == second.outbox_id
    assert first.id != second.id


# Rubbish


@pytest.mark.parametrize("name", ["aggregate-id", "publisher-node", "trace-id", "tenant-id"])
def test_headers_that_only_tell_are_not_needed(name: str) -> None:
    left = [header for header in HEADERS if header[0] != name]
    assert read(PAYLOAD, left) == event_of(left)


@pytest.mark.parametrize("outbox_id", [1, 9, 10, 2**53 + 1, 2**63 - 1])
def test_every_positive_bigint_is_an_outbox_id(outbox_id: int) -> None:
    event = read(PAYLOAD, headers(outbox_id=str(outbox_id).encode()))
    assert event is not None
    assert event.outbox_id == outbox_id


@pytest.mark.parametrize("event_type", [b"order.cancelled", b"order.created.v2", b"ORDER.CREATED", b""])
def test_an_event_of_another_type_is_left_alone(event_type: bytes) -> None:
    assert read(PAYLOAD, headers(event_type=event_type)) is None


def test_another_type_is_not_judged_by_our_rules() -> None:
    assert read(None, [("event-type", b"stock.counted")]) is None


def test_of_a_header_that_comes_twice_the_last_counts() -> None:
    """As Kafka's own clients have it (`lastHeader`)."""
    event = read(PAYLOAD, [*HEADERS, ("outbox-id", b"43")])
    assert event is not None
    assert event.outbox_id == 43
    with pytest.raises(UnreadableError, match=r"^outbox-id is ''"):
        read(PAYLOAD, [*HEADERS, ("outbox-id", b"")])


def test_unknown_headers_and_fields_are_no_fault() -> None:
    future = PAYLOAD + b"\x9a\x06\x03new"  # field 99, a string
    event = read(future, [("x-more", b"\xff"), *HEADERS])
    assert event is not None
    assert event.data.order_id == ORDER_ID


# Every record there is

TEXT = st.text(st.characters(codec="utf-8"))
ORDERS = st.builds(
    OrderCreated,
    order_id=st.uuids().map(str),
    customer_id=TEXT,
    amount_cents=st.integers(-(2**63), 2**63 - 1),
    currency=TEXT,
    status=st.sampled_from([0, ORDER_STATUS_NEW, 7]),
    created_at=st.builds(Timestamp, seconds=st.integers(0, 253402300799), nanos=st.integers(0, 999_999_999)),
    trace_id=TEXT,
    tenant_id=TEXT,
)


@given(outbox_id=st.integers(1, 2**63 - 1), order=ORDERS, node=TEXT)
def test_every_order_that_is_written_is_read_back(outbox_id: int, order: OrderCreated, node: str) -> None:
    key = events.aggregate_id(order.order_id)
    written = events.order_headers(outbox_id, order, node=node)
    event = read(order.SerializeToString(), written, key=None)
    assert event is not None
    assert (event.outbox_id, event.key, event.data) == (outbox_id, key, order)
    assert (event.tenant_id, event.trace_id) == (order.tenant_id, order.trace_id)
