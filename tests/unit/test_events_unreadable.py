"""Records that no consumer can read: each is refused with a reason, and nothing else happens."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewctl.delivery import events
from brewctl.delivery.events import Headers, UnreadableError
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated
from tests.unit.event_records import BOTH, EVENT_ID, HEADERS, ORDER_ID, PAYLOAD, headers, read


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


@pytest.mark.parametrize("aggregate_id", [None, b""])
def test_without_a_key_and_an_aggregate_nobody_knows_what_it_is_of(aggregate_id: bytes | None) -> None:
    with pytest.raises(UnreadableError, match=r"^key is missing$"):
        read(PAYLOAD, headers(aggregate_id=aggregate_id), key=None)


@pytest.mark.parametrize(("key", "reason"), [(b"\xff", "key is not UTF-8"), (b"order\0", "key has a NUL")])
def test_a_key_that_postgres_can_not_have_is_refused(key: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        read(PAYLOAD, HEADERS, key=key)


@pytest.mark.parametrize("value", [b"\xff" * 9, b"{}", OrderCancelled(order_id="x").SerializeToString()])
def test_what_is_no_cancelled_order_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^payload "):
        read(value, headers(event_type=b"order.cancelled"), decoders=BOTH)


def test_what_an_own_decoder_raises_is_the_reason() -> None:
    def fails(_payload: bytes) -> Any:
        raise ValueError("no\njson " + "x" * 1_000)

    written = events.headers_for(1, "pay-1", "payment.received", node="n")
    with pytest.raises(
        UnreadableError, match=r"^payload is no payment.received \(ValueError: no json x+\)$"
    ) as refused:
        read(b"{", written, decoders={b"payment.received": fails})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["outbox-id", "event-type", "content-type"])
def test_a_header_that_is_needed_and_missing_is_named(name: str) -> None:
    with pytest.raises(UnreadableError, match=f"^header {name} is missing$"):
        read(PAYLOAD, [header for header in HEADERS if header[0] != name])


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
