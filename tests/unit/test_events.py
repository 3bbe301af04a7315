"""OrderCreated as the topic carries it: written, read back, and every kind of rubbish refused."""

import random
import uuid

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from brewctl.delivery import events
from brewctl.delivery.events import Headers, UnreadableError
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, OrderCreated

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


def test_headers_are_utf_8() -> None:
    written = dict(events.headers_for(1, "order-ä", OrderCreated(tenant_id="€"), node="кафе"))
    assert written["aggregate-id"] == b"order-\xc3\xa4"
    assert written["tenant-id"] == b"\xe2\x82\xac"
    assert written["publisher-node"].decode("utf-8") == "кафе"


def test_what_was_written_is_read_back() -> None:
    assert events.read_record(PAYLOAD, HEADERS) == events.Event(42, ORDER)


@pytest.mark.parametrize("name", ["outbox-id", "event-type", "content-type"])
def test_a_header_that_is_needed_and_missing_is_named(name: str) -> None:
    with pytest.raises(UnreadableError, match=f"^header {name} is missing$"):
        events.read_record(PAYLOAD, [header for header in HEADERS if header[0] != name])


@pytest.mark.parametrize("name", ["aggregate-id", "publisher-node", "trace-id", "tenant-id"])
def test_headers_that_only_tell_are_not_needed(name: str) -> None:
    event = events.read_record(PAYLOAD, [header for header in HEADERS if header[0] != name])
    assert event == events.Event(42, ORDER)


def test_without_any_headers() -> None:
    with pytest.raises(UnreadableError, match="is missing"):
        events.read_record(PAYLOAD, [])


@pytest.mark.parametrize("name", ["outbox-id", "event-type", "content-type"])
def test_a_header_that_is_not_utf_8_is_named(name: str) -> None:
    broken = [(header, b"\xff\xfe" if header == name else value) for header, value in HEADERS]
    with pytest.raises(UnreadableError, match=f"^header {name} is not UTF-8$"):
        events.read_record(PAYLOAD, broken)


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
        events.read_record(PAYLOAD, headers(outbox_id=outbox_id.encode()))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("outbox_id", [1, 9, 10, 2**53 + 1, 2**63 - 1])
def test_every_positive_bigint_is_an_outbox_id(outbox_id: int) -> None:
    event = events.read_record(PAYLOAD, headers(outbox_id=str(outbox_id).encode()))
    assert event is not None
    assert event.outbox_id == outbox_id


@pytest.mark.parametrize("content_type", [b"", b"application/json", b"application/x-protobuf; v=1", b"x" * 10_000])
def test_another_content_type_is_refused(content_type: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^content-type is .*, not application/x-protobuf$") as refused:
        events.read_record(PAYLOAD, headers(content_type=content_type))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("value", [None, b""])
def test_an_empty_value_is_refused(value: bytes | None) -> None:
    with pytest.raises(UnreadableError, match=r"^value is empty$"):
        events.read_record(value, HEADERS)


@pytest.mark.parametrize("value", [b"\x00", b"\xff" * 20, b"{}", b"not protobuf at all", PAYLOAD[:-3]])
def test_a_value_that_is_no_protobuf_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^payload "):
        events.read_record(value, HEADERS)


def test_random_bytes_are_refused() -> None:
    dice = random.Random(1)
    for length in range(1, 500):
        with pytest.raises(UnreadableError, match=r"^payload "):
            events.read_record(dice.randbytes(length), HEADERS)


@pytest.mark.parametrize(
    "order_id", ["", "1", "order-1", ORDER_ID[:-1], ORDER_ID + "0", ORDER_ID.replace("7", "g"), "\x00" * 36, "é" * 32]
)
def test_an_order_without_a_uuid_is_refused(order_id: str) -> None:
    order = OrderCreated(order_id=order_id, customer_id="c1", amount_cents=1, currency="EUR")
    with pytest.raises(UnreadableError, match=r"^payload has no order_id that is a UUID$"):
        events.read_record(order.SerializeToString(), HEADERS)


@pytest.mark.parametrize("event_type", [b"order.cancelled", b"order.created.v2", b"ORDER.CREATED", b""])
def test_an_event_of_another_type_is_left_alone(event_type: bytes) -> None:
    assert events.read_record(PAYLOAD, headers(event_type=event_type)) is None


def test_another_type_is_not_judged_by_our_rules() -> None:
    assert events.read_record(None, [("event-type", b"stock.counted")]) is None


def test_of_a_header_that_comes_twice_the_last_counts() -> None:
    """As Kafka's own clients have it (`lastHeader`)."""
    event = events.read_record(PAYLOAD, [*HEADERS, ("outbox-id", b"43")])
    assert event is not None
    assert event.outbox_id == 43
    with pytest.raises(UnreadableError, match=r"^outbox-id is ''"):
        events.read_record(PAYLOAD, [*HEADERS, ("outbox-id", b"")])


def test_unknown_headers_and_fields_are_no_fault() -> None:
    future = PAYLOAD + b"\x9a\x06\x03new"  # field 99, a string
    event = events.read_record(future, [("x-more", b"\xff"), *HEADERS])
    assert event is not None
    assert event.order.order_id == ORDER_ID


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
    written = events.headers_for(outbox_id, key, order, node=node)
    assert events.read_record(order.SerializeToString(), written) == events.Event(outbox_id, order)


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
        event = events.read_record(value, [*HEADERS, *raw] if good else raw)
    except UnreadableError as refused:
        reason = str(refused)
    assert 0 < len(reason) < 1000
    assert event is None or (event.outbox_id >= 1 and events.is_uuid(event.order.order_id))
