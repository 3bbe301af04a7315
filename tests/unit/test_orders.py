"""What order-service accepts: the contract's input rules, and where a trace id comes from."""

import re
import unicodedata
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from iso4217 import Currency

from brewctl.delivery.orders import acceptance
from brewctl.delivery.orders.acceptance import InvalidOrderError, NewOrder
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, CreateRequest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def accept(
    *,
    customer_id: str = "c1",
    amount_cents: int = 450,
    currency: str = "EUR",
    idempotency_key: str = "",
    tenant_id: str | None = None,
    traceparent: str | None = None,
) -> NewOrder:
    """Accept a good request but for what is given."""
    request = CreateRequest(
        customer_id=customer_id, amount_cents=amount_cents, currency=currency, idempotency_key=idempotency_key
    )
    return acceptance.accept(request, tenant_id=tenant_id, traceparent=traceparent)


def test_a_good_request_becomes_a_new_order() -> None:
    new = accept(idempotency_key="k1", tenant_id="shop-2", traceparent=f"00-{TRACE}-{PARENT}-01")
    made = uuid.UUID(new.order.order_id)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(new.created_at.timestamp() * 1000), "it begins with its time"
    assert (new.order.customer_id, new.order.amount_cents, new.order.currency) == ("c1", 450, "EUR")
    assert new.order.status == ORDER_STATUS_NEW
    assert abs(datetime.now(UTC) - new.order.created_at.ToDatetime(tzinfo=UTC)) < timedelta(minutes=1)
    assert (new.tenant_id, new.trace_id, new.idempotency_key) == ("shop-2", TRACE, "k1")


def test_each_request_gets_an_id_of_its_own() -> None:
    assert accept().order.order_id != accept().order.order_id


def test_what_is_optional_has_a_default() -> None:
    new = accept()
    assert new.tenant_id == "brew"
    assert new.idempotency_key is None
    assert re.fullmatch("[0-9a-f]{32}", new.trace_id)


@pytest.mark.parametrize("amount_cents", [1, 10**12])
def test_amounts_within_the_bounds(amount_cents: int) -> None:
    assert accept(amount_cents=amount_cents).order.amount_cents == amount_cents


@pytest.mark.parametrize("amount_cents", [0, -1, -(2**63), 10**12 + 1, 2**63 - 1])
def test_amounts_out_of_bounds(amount_cents: int) -> None:
    with pytest.raises(InvalidOrderError, match=f"^amount_cents must be 1 to 1000000000000, not {amount_cents}$"):
        accept(amount_cents=amount_cents)


@pytest.mark.parametrize("currency", ["EUR", "USD", "JPY", "KWD"])
def test_iso_4217_codes(currency: str) -> None:
    assert accept(currency=currency).order.currency == currency


@pytest.mark.parametrize("currency", ["", "eur", "Eur", "EURO", "EU", "ZZZ", " EUR", "EUR\n", "978", "€", "E" * 5_000])
def test_what_is_no_currency(currency: str) -> None:
    with pytest.raises(InvalidOrderError, match=r"^currency must be an ISO 4217 code such as EUR, not ") as refused:
        accept(currency=currency)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("customer_id", ["c", "c" * 128, "🧋" * 128, "Zoë Ångström", "日本", "' OR 1=1 --", "a b"])
def test_customer_ids(customer_id: str) -> None:
    """The bound counts characters, not bytes."""
    assert accept(customer_id=customer_id).order.customer_id == customer_id


@pytest.mark.parametrize("customer_id", ["", "c" * 129, "🧋" * 129, "c" * 60_000])
def test_customer_ids_of_the_wrong_length(customer_id: str) -> None:
    words = f"^customer_id must have 1 to 128 characters, not {len(customer_id)}$"
    with pytest.raises(InvalidOrderError, match=words):
        accept(customer_id=customer_id)


@pytest.mark.parametrize("control", ["\x00", "\x01", "\t", "\n", "\r", "\x1b", "\x1f", "\x7f", "\x80", "\x85", "\x9f"])
@pytest.mark.parametrize("field", ["customer_id", "idempotency_key"])
def test_control_characters_are_refused(field: str, control: str) -> None:
    with pytest.raises(InvalidOrderError, match=f"^{field} must not contain control characters$"):
        acceptance.accept(
            CreateRequest(**{"customer_id": "c1", "amount_cents": 1, "currency": "EUR", field: f"a{control}b"}),  # type: ignore[arg-type]
            tenant_id=None,
            traceparent=None,
        )


@pytest.mark.parametrize("key", ["k", "k" * 255, "🗝" * 255])
def test_idempotency_keys(key: str) -> None:
    assert accept(idempotency_key=key).idempotency_key == key


def test_an_idempotency_key_that_is_too_long() -> None:
    with pytest.raises(InvalidOrderError, match=r"^idempotency_key must have 0 to 255 characters, not 256$"):
        accept(idempotency_key="k" * 256)


@pytest.mark.parametrize("tenant", ["a", "A.b_c-9", "t" * 64])
def test_tenants(tenant: str) -> None:
    assert accept(tenant_id=tenant).tenant_id == tenant


@pytest.mark.parametrize("tenant", ["", "a b", "a/b", "t" * 65, "brew\n", "tenänt", "a" * 5_000])
def test_what_is_no_tenant(tenant: str) -> None:
    with pytest.raises(InvalidOrderError, match=r"^x-tenant-id must match ") as refused:
        accept(tenant_id=tenant)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_every_violation_is_named() -> None:
    with pytest.raises(InvalidOrderError) as refused:
        accept(
            customer_id="\x00" * 129, amount_cents=0, currency="eur", idempotency_key="\n" + "k" * 255, tenant_id="a b"
        )
    named = [violation.split(" must ")[0] for violation in str(refused.value).split("; ")]
    assert named == [
        "customer_id",
        "customer_id",
        "idempotency_key",
        "idempotency_key",
        "amount_cents",
        "currency",
        "x-tenant-id",
    ]


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-00",
        f"00-{TRACE}-{PARENT}-ff",
        f"01-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
        f"fe-{TRACE}-{PARENT}-01-",
    ],
)
def test_the_trace_goes_on(traceparent: str) -> None:
    assert acceptance.trace_id(traceparent) == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "nonsense",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-0",
        f"00-{TRACE}-{PARENT}-001",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}0-{PARENT}-01",
        f"00-{TRACE}-{PARENT[:-1]}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{TRACE}-{PARENT}-0A",
        f"00-{'g' * 32}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01-",
        f"01-{TRACE}-{PARENT}-01more",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_a_malformed_traceparent_starts_a_new_trace(traceparent: str | None) -> None:
    made = {acceptance.trace_id(traceparent) for _ in range(10)}
    assert len(made) == 10
    assert TRACE not in made
    assert all(re.fullmatch("[0-9a-f]{32}", trace) and set(trace) != {"0"} for trace in made)


# Every input there is

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=140)
CONTROLS = frozenset(chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)])


def test_control_characters_are_what_unicode_says() -> None:
    assert {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"} == CONTROLS


@given(
    customer_id=ANY_TEXT,
    amount_cents=st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2) | st.integers(10**12 - 2, 10**12 + 2),
    currency=st.sampled_from([currency.code for currency in Currency]) | st.text("AEIOURSDéé\x00 1", max_size=4),
    idempotency_key=ANY_TEXT,
    tenant_id=st.none() | st.text("aZ0._- /é\n", max_size=70) | ANY_TEXT,
)
@example(customer_id="c" * 128, amount_cents=10**12, currency="EUR", idempotency_key="k" * 255, tenant_id="t" * 64)
@example(customer_id="c" * 129, amount_cents=1, currency="EUR", idempotency_key="k" * 256, tenant_id="t" * 65)
def test_exactly_what_the_contract_allows_is_accepted(
    customer_id: str, amount_cents: int, currency: str, idempotency_key: str, tenant_id: str | None
) -> None:
    wrong = {
        "customer_id": not 1 <= len(customer_id) <= 128 or not CONTROLS.isdisjoint(customer_id),
        "idempotency_key": len(idempotency_key) > 255 or not CONTROLS.isdisjoint(idempotency_key),
        "amount_cents": not 1 <= amount_cents <= 10**12,
        "currency": currency not in {currency.code for currency in Currency},
        "x-tenant-id": tenant_id is not None
        and (not 1 <= len(tenant_id) <= 64 or not set(tenant_id) <= set(TENANT_CHARACTERS)),
    }
    try:
        new = accept(
            customer_id=customer_id,
            amount_cents=amount_cents,
            currency=currency,
            idempotency_key=idempotency_key,
            tenant_id=tenant_id,
        )
    except InvalidOrderError as refused:
        reasons = str(refused)
    else:
        reasons = ""
        order = new.order
        assert (order.customer_id, order.amount_cents, order.currency) == (customer_id, amount_cents, currency)
        assert (new.idempotency_key or "", new.tenant_id) == (idempotency_key, tenant_id or "brew")
    named = {violation.partition(" must ")[0] for violation in reasons.split("; ")} & wrong.keys()
    assert named == {name for name, is_wrong in wrong.items() if is_wrong}
    assert reasons.isprintable()


TENANT_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
HEX = "0123456789abcdef"


@given(
    version=st.text(HEX, min_size=2, max_size=2),
    trace=st.text(HEX, min_size=32, max_size=32),
    parent=st.text(HEX, min_size=16, max_size=16),
    flags=st.text(HEX, min_size=2, max_size=2),
    more=st.just("") | st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=20).map("-{}".format),
)
@example(version="00", trace="0" * 32, parent=PARENT, flags="01", more="")
@example(version="00", trace=TRACE, parent="0" * 16, flags="01", more="")
@example(version="ff", trace=TRACE, parent=PARENT, flags="01", more="")
def test_exactly_the_traces_that_w3c_allows_go_on(version: str, trace: str, parent: str, flags: str, more: str) -> None:
    goes_on = version != "ff" and set(trace) != {"0"} and set(parent) != {"0"} and (version != "00" or not more)
    assert (acceptance.trace_id(f"{version}-{trace}-{parent}-{flags}{more}") == trace) is goes_on


@given(st.text())
def test_whatever_comes_as_a_traceparent_there_is_a_trace(traceparent: str) -> None:
    made = acceptance.trace_id(traceparent)
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert set(made) != {"0"}
