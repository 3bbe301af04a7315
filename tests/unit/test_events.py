"""Events as the topic carries them: written, read back, and every kind of rubbish refused."""

import random
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from brewctl.delivery import events
from brewctl.delivery.events import Decoder, Event, Headers, UnreadableError
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, OrderCancelled, OrderCreated

ORDER_ID = "7f3c1de6-3f0c-4d62-9a8d-0f4c8f7f3a11"
ORDER = OrderCreated(
    order_id=ORDER_ID,
    customer_id="Zoë ☕",
    amount_cents=450,
    currency="EUR",
    status=ORDER_STATUS_NEW,
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    tenant_id="brew",
)
PAYLOAD = ORDER.SerializeToString()
KEY = events.aggregate_id(ORDER_ID)
HEADERS = events.order_headers(42, ORDER, node="order-1")
EVENT_ID = "0b6f4f5e-2f8e-4a51-9a3c-5b6f0c1d2e3f"
PARENT = f"00-{ORDER.trace_id}-00f067aa0ba902b7-01"
FURTHER = [("event-id", EVENT_ID.encode()), ("aggregate-seq", b"1"), ("traceparent", PARENT.encode())]
BOTH = {name.encode(): decoder for name, decoder in events.DECODERS.items()}
CREATED = {b"order.created": events.parse_order}


def read(
    value: bytes | None,
    headers: Headers,
    *,
    key: bytes | None = KEY.encode(),
    decoders: Mapping[bytes, Decoder] = CREATED,
) -> Event[Any] | None:
    """Read a record with the key of the order."""
    return events.read(key, value, headers, 1_000, decoders=decoders)


def event_of(headers: Headers, *, outbox_id: int = 42, event_id: str | None = None, seq: int | None = None) -> Any:
    """The order's event, as it must be read."""
    return Event(outbox_id, event_id, "order.created", KEY, seq, ORDER, PAYLOAD, headers, 1_000)


def headers(**changed: bytes | None) -> Headers:
    """Good headers but for these (`outbox_id=b"0"`); None leaves one out."""
    changes = {name.replace("_", "-"): value for name, value in changed.items()}
    merged = [(name, changes.get(name, value)) for name, value in HEADERS]
    return [(name, value) for name, value in merged if value is not None]


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


@pytest.mark.parametrize(
    "event_id",
    [
        b"",
        b"1",
        EVENT_ID[:-1].encode(),
        f"{EVENT_ID}0".encode(),
        f"{{{EVENT_ID}}}".encode(),
        f"urn:uuid:{EVENT_ID}".encode(),
        EVENT_ID.replace("-", "").encode(),
        f"{EVENT_ID}\n".encode(),
        "٣".encode() * 18,
        b"g" * 36,
        b"x" * 10_000,
    ],
)
def test_a_malformed_event_id_is_refused(event_id: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^event-id is .*, not a UUID$") as refused:
        read(PAYLOAD, [*HEADERS, ("event-id", event_id)])
    assert len(str(refused.value)) < 200


def test_an_event_id_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UnreadableError, match=r"^header event-id is not UTF-8$"):
        read(PAYLOAD, [*HEADERS, ("event-id", b"\xff")])


@pytest.mark.parametrize("seq", [b"", b"0", b"-1", b"01", b"1.0", b" 1", b"one", str(2**63).encode(), b"9" * 5_000])
def test_a_malformed_seq_is_refused(seq: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^aggregate-seq is .*, not a positive 64-bit number$") as refused:
        read(PAYLOAD, [*HEADERS, ("aggregate-seq", seq)])
    assert len(str(refused.value)) < 200


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


@pytest.mark.parametrize("aggregate_id", [None, b""])
def test_without_a_key_and_an_aggregate_nobody_knows_what_it_is_of(aggregate_id: bytes | None) -> None:
    with pytest.raises(UnreadableError, match=r"^key is missing$"):
        read(PAYLOAD, headers(aggregate_id=aggregate_id), key=None)


@pytest.mark.parametrize(("key", "reason"), [(b"\xff", "key is not UTF-8"), (b"order\0", "key has a NUL")])
def test_a_key_that_postgres_can_not_have_is_refused(key: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        read(PAYLOAD, HEADERS, key=key)


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


@pytest.mark.parametrize("value", [b"\xff" * 9, b"{}", OrderCancelled(order_id="x").SerializeToString()])
def test_what_is_no_cancelled_order_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^payload "):
        read(value, headers(event_type=b"order.cancelled"), decoders=BOTH)


def test_a_downstreams_own_decoder_reads_its_own_type_of_any_content() -> None:
    written = events.headers_for(1, "pay-1", "payment.received", node="n", content_type="application/json")
    event = read(b'{"cents": 5}', written, decoders={b"payment.received": bytes.decode})
    assert event is not None
    assert (event.type, event.data, event.raw) == ("payment.received", '{"cents": 5}', b'{"cents": 5}')
    assert event.occurred_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "its payload does not say when: its record"


def test_what_an_own_decoder_raises_is_the_reason() -> None:
    def fails(_payload: bytes) -> Any:
        raise ValueError("no\njson " + "x" * 1_000)

    written = events.headers_for(1, "pay-1", "payment.received", node="n")
    with pytest.raises(
        UnreadableError, match=r"^payload is no payment.received \(ValueError: no json x+\)$"
    ) as refused:
        read(b"{", written, decoders={b"payment.received": fails})
    assert len(str(refused.value)) < 300


def test_two_events_of_one_outbox_id_differ_in_their_event_id() -> None:
    first, second = (read(PAYLOAD, [*HEADERS, ("event-id", str(uuid.UUID(int=number)).encode())]) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert first.outbox_id == second.outbox_id
    assert first.id != second.id


# Rubbish


@pytest.mark.parametrize("name", ["outbox-id", "event-type", "content-type"])
def test_a_header_that_is_needed_and_missing_is_named(name: str) -> None:
    with pytest.raises(UnreadableError, match=f"^header {name} is missing$"):
        read(PAYLOAD, [header for header in HEADERS if header[0] != name])


@pytest.mark.parametrize("name", ["aggregate-id", "publisher-node", "trace-id", "tenant-id"])
def test_headers_that_only_tell_are_not_needed(name: str) -> None:
    left = [header for header in HEADERS if header[0] != name]
    assert read(PAYLOAD, left) == event_of(left)


def test_without_any_headers() -> None:
    with pytest.raises(UnreadableError, match="is missing"):
        read(PAYLOAD, [])


@pytest.mark.parametrize("name", ["outbox-id", "event-type", "content-type"])
def test_a_header_that_is_not_utf_8_is_named(name: str) -> None:
    broken = [(header, b"\xff\xfe" if header == name else value) for header, value in HEADERS]
    with pytest.raises(UnreadableError, match=f"^header {name} is not UTF-8$"):
        read(PAYLOAD, broken)


@pytest.mark.parametrize(
    "outbox_id",
    [
        "",
        "0",
        "-1",
        "+1",
        "01",
        "1.5",
        "1e3",
        "0x1",
        "1_0",
        " 1",
        "1\n",
        "one",
        "９",  # noqa: RUF001 - a full-width digit, which str.isdigit and int() take
        "1９",  # noqa: RUF001
        "1٣",
        str(2**63),
        "9" * 19,
        "1" * 25,
        "1" * 10_000,
    ],
)
def test_a_malformed_outbox_id_is_refused(outbox_id: str) -> None:
    with pytest.raises(UnreadableError, match=r"^outbox-id is .*, not a positive 64-bit number$") as refused:
        read(PAYLOAD, headers(outbox_id=outbox_id.encode()))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("outbox_id", [1, 9, 10, 2**53 + 1, 2**63 - 1])
def test_every_positive_bigint_is_an_outbox_id(outbox_id: int) -> None:
    event = read(PAYLOAD, headers(outbox_id=str(outbox_id).encode()))
    assert event is not None
    assert event.outbox_id == outbox_id


@pytest.mark.parametrize("content_type", [b"", b"application/json", b"application/x-protobuf; v=1", b"x" * 10_000])
def test_another_content_type_is_refused(content_type: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^content-type is .*, not application/x-protobuf$") as refused:
        read(PAYLOAD, headers(content_type=content_type))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("value", [None, b""])
def test_an_empty_value_is_refused(value: bytes | None) -> None:
    with pytest.raises(UnreadableError, match=r"^value is empty$"):
        read(value, HEADERS)


@pytest.mark.parametrize("value", [b"\x00", b"\xff" * 20, b"{}", b"not protobuf at all", PAYLOAD[:-3]])
def test_a_value_that_is_no_protobuf_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^payload "):
        read(value, HEADERS)


def test_random_bytes_are_refused() -> None:
    dice = random.Random(1)
    for length in range(1, 500):
        with pytest.raises(UnreadableError, match=r"^payload "):
            read(dice.randbytes(length), HEADERS)


@pytest.mark.parametrize(
    "order_id", ["", "1", "order-1", ORDER_ID[:-1], ORDER_ID + "0", ORDER_ID.replace("7", "g"), "\x00" * 36, "é" * 32]
)
def test_an_order_without_a_uuid_is_refused(order_id: str) -> None:
    order = OrderCreated(order_id=order_id, customer_id="c1", amount_cents=1, currency="EUR")
    with pytest.raises(UnreadableError, match=r"^payload has no order_id that is a UUID$"):
        read(order.SerializeToString(), HEADERS)


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


def test_parse_order_takes_any_order_with_a_uuid() -> None:
    order_id = str(uuid.uuid4())
    assert events.parse_order(OrderCreated(order_id=order_id).SerializeToString()).order_id == order_id


@pytest.mark.parametrize("payload", [b"", b"\xff" * 20])
def test_parse_order_refuses_what_is_no_order(payload: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^payload "):
        events.parse_order(payload)


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


RAW_HEADERS = st.lists(
    st.tuples(
        st.sampled_from([name for name, _ in HEADERS]) | st.text(),
        st.sampled_from([value for _, value in HEADERS]) | st.binary(),
    )
)


@given(value=st.none() | st.just(PAYLOAD) | st.binary(), raw=RAW_HEADERS, good=st.booleans())
def test_whatever_comes_is_read_or_refused_with_a_reason(value: bytes | None, raw: Headers, good: bool) -> None:
    event, reason = None, "another type"
    try:
        event = read(value, [*HEADERS, *raw] if good else raw)
    except UnreadableError as refused:
        reason = str(refused)
    assert 0 < len(reason) < 1000
    assert event is None or (event.outbox_id >= 1 and events.is_uuid(event.data.order_id))
