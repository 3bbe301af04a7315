"""Clients of an order-service with TLS: who is trusted, what is said where nobody is, and files that are replaced."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from brewctl.client import OrderClient, UnknownOutcomeError
from brewctl.doctor import Verdict, orders
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.lifecycle import wait_until
from brewctl.roles.listening import Security
from brewctl.roles.order.tls import Certificates
from brewctl.security import PLAINTEXT, OrderSecurity, Secret
from tests.certificates import Authority, Files, put, variables
from tests.conftest import run
from tests.order_server import OrderServer, serving

TOKEN = "planted-" + "b" * 32


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "other")


@contextlib.contextmanager
def tls(files: Files, clients: Authority | None = None) -> Iterator[OrderServer]:
    """An order-service with this certificate, which may want certificates of its clients."""
    security = Security(str(files.certificate), str(files.key), str(clients.ca) if clients else None)
    with serving(credentials=Certificates(security).credentials()) as server:
        yield server


def create(address: str, security: OrderSecurity) -> str:
    with OrderClient([address], security=security, timeout_s=60) as client:
        return client.create("c1", amount_cents=450, currency="EUR")


def refusal(address: str, security: OrderSecurity) -> UnreachableError:
    """What is said of what no retry mends, at the first try."""
    retries: list[str] = []
    with (
        OrderClient([address], security=security, timeout_s=60, on_retry=retries.append) as client,
        pytest.raises(UnreachableError) as refused,
    ):
        client.create("c1", amount_cents=450, currency="EUR")
    assert retries == []
    assert not isinstance(refused.value, UnknownOutcomeError)
    assert "\n" not in str(refused.value)
    assert refused.value.message.startswith(f"order-service {address} ")
    return refused.value


def test_a_trusted_server(authority: Authority) -> None:
    with tls(authority.issue()) as server:
        assert create(server.address, authority.trusted())


def test_a_server_that_knows_its_clients(authority: Authority) -> None:
    with tls(authority.issue(), clients=authority) as server:
        assert create(server.address, authority.trusted(authority.issue("client")))


def test_a_server_of_another_authority(authority: Authority, other: Authority) -> None:
    with tls(other.issue()) as server:
        told = refusal(server.address, authority.trusted())
        assert told.message.endswith(f"shows a certificate that no authority in {authority.ca} has issued")
        assert told.hint == "set BREW_ORDER_CA_FILE to the certificate of the authority that issued it"


def test_the_system_does_not_trust_an_authority_of_ours(authority: Authority) -> None:
    with tls(authority.issue()) as server:
        assert "no authority in the system's authorities" in refusal(server.address, OrderSecurity(tls=True)).message


def test_the_systems_authorities(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with tls(authority.issue()) as server:
        assert create(server.address, OrderSecurity(tls=True))


def test_a_server_whose_certificate_has_expired(authority: Authority) -> None:
    with tls(authority.issue(age=timedelta(3), left=timedelta(-1))) as server:
        assert "shows a certificate that has expired" in refusal(server.address, authority.trusted()).message


def test_a_server_whose_certificate_is_not_valid_yet(authority: Authority) -> None:
    with tls(authority.issue(age=timedelta(-1), left=timedelta(2))) as server:
        assert "is not valid yet" in refusal(server.address, authority.trusted()).message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_for_another_name(authority: Authority, host: str) -> None:
    with tls(authority.issue(hosts=("orders.example",))) as server:
        address = f"{host}:{server.address.rpartition(':')[2]}"
        assert refusal(address, authority.trusted()).message.endswith(f"shows a certificate that is not for {host}")


def test_a_server_that_wants_a_certificate(authority: Authority) -> None:
    with tls(authority.issue(), clients=authority) as server:
        told = refusal(server.address, authority.trusted())
        assert told.message.endswith("wants a certificate of its clients")
        assert told.hint == "set BREW_ORDER_CERT_FILE and BREW_ORDER_KEY_FILE"


def test_a_client_of_another_authority(authority: Authority, other: Authority) -> None:
    mine = other.issue("client")
    with tls(authority.issue(), clients=authority) as server:
        told = refusal(server.address, authority.trusted(mine))
        assert f"does not take the client's certificate in {mine.certificate}" in told.message
        assert "--tls-client-ca" in told.hint


def test_a_client_whose_certificate_has_expired(authority: Authority) -> None:
    mine = authority.issue("client", age=timedelta(3), left=timedelta(-1))
    with tls(authority.issue(), clients=authority) as server:
        assert f"{mine.certificate} has expired" in refusal(server.address, authority.trusted(mine)).message


def test_plain_text_to_a_server_with_tls(authority: Authority) -> None:
    with tls(authority.issue()) as server:
        told = refusal(server.address, PLAINTEXT)
        assert told.message.endswith("speaks TLS, and is asked in plain text")
        assert "BREW_ORDER_CA_FILE" in told.hint


def test_plain_text_to_a_server_that_wants_a_certificate(authority: Authority) -> None:
    with tls(authority.issue(), clients=authority) as server:
        assert "speaks TLS" in refusal(server.address, PLAINTEXT).message


def test_tls_to_a_server_without(authority: Authority) -> None:
    with serving() as server:
        told = refusal(server.address, authority.trusted())
        assert told.message.endswith("speaks no TLS")
        assert "BREW_ORDER_CA_FILE" in told.hint


def test_another_address_may_do(authority: Authority, other: Authority) -> None:
    with (
        tls(other.issue()) as bad,
        tls(authority.issue()) as good,
        OrderClient([bad.address, good.address], security=authority.trusted()) as client,
    ):
        for _ in range(4):
            client.create("c1", amount_cents=450, currency="EUR")
        assert (len(bad.requests), len(good.requests)) == (0, 4)


def test_the_command_says_it_in_one_line(authority: Authority, other: Authority) -> None:
    with tls(other.issue()) as server:
        asked = ("create-order", "--customer", "c1", "--addr", server.address)
        done = run(*asked, env=variables(authority.trusted()))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3
    assert line.startswith(f"brewctl: order-service {server.address} shows a certificate that no authority")


# Files that are replaced


def test_a_new_certificate_of_the_client_is_used(authority: Authority, other: Authority) -> None:
    mine = other.issue("client")
    security = OrderSecurity(ca=str(authority.ca), certificate=str(mine.certificate), key=str(mine.key))
    with (
        tls(authority.issue(), clients=authority) as server,
        OrderClient([server.address], security=security) as client,
    ):
        with pytest.raises(UnreachableError):
            client.create("c1", amount_cents=450, currency="EUR")
        new = authority.issue("client")
        put(mine.key, new.key.read_bytes())
        put(mine.certificate, new.certificate.read_bytes())
        assert client.create("c1", amount_cents=450, currency="EUR")


def test_a_call_in_flight_ends_on_the_channel_that_it_began_on(authority: Authority) -> None:
    mine = authority.issue("client")
    go_on, retries = threading.Event(), list[str]()
    server_files = authority.issue()
    security = Security(str(server_files.certificate), str(server_files.key), str(authority.ca))
    with (
        serving(lambda _n, _c: print(go_on.wait(30)), credentials=Certificates(security).credentials()) as server,
        OrderClient(
            [server.address], security=authority.trusted(mine), attempt_s=60, timeout_s=60, on_retry=retries.append
        ) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        calls = []
        for number in (1, 2):
            before = client._lines.line
            calls.append(threads.submit(client.create, "c1", amount_cents=450, currency="EUR"))
            wait_until("the call", lambda number=number: len(server.requests) == number, timeout_s=30)  # type: ignore[misc]
            put(mine.certificate, mine.certificate.read_bytes())
            assert client._lines.look(now=True) is not before
        go_on.set()
        assert all(call.result() for call in calls)
    assert retries == []


def test_a_half_written_one_is_named_and_the_one_before_serves_on(authority: Authority) -> None:
    mine = authority.issue("client")
    whole = mine.certificate.read_bytes()
    with tls(authority.issue(), clients=authority) as server:
        with OrderClient([server.address], security=authority.trusted(mine)) as client:
            client.create("c1", amount_cents=450, currency="EUR")
            put(mine.certificate, whole[:-30])
            client._lines.look(now=True)
            assert client.create("c1", amount_cents=450, currency="EUR")
        with pytest.raises(UsageError, match="not written to its end"):
            create(server.address, authority.trusted(mine))


def test_a_new_token_is_used_by_the_call_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    put(path, "an-old-token\n")
    security = OrderSecurity(token=Secret("BREW_ORDER_TOKEN", file=str(path)))
    sent = []

    def handle(_number: int, context: grpc.ServicerContext) -> None:
        sent.append(dict(context.invocation_metadata())["authorization"])
        if sent[-1] != f"Bearer {TOKEN}":
            put(path, f"{TOKEN}\n")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not known here")

    with serving(handle) as server:
        assert create(server.address, security)
    assert sent == ["Bearer an-old-token", f"Bearer {TOKEN}"]


def test_a_token_that_is_refused_is_not_sent_again() -> None:
    def handle(_number: int, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not known here")

    with serving(handle) as server:
        with pytest.raises(BrewError) as refused:
            create(server.address, OrderSecurity(token=Secret("BREW_ORDER_TOKEN", TOKEN)))
        assert len(server.requests) == 1
    assert "the token is not known here" in refused.value.message
    assert "BREW_ORDER_TOKEN_FILE" in refused.value.hint
    assert TOKEN not in str(refused.value)


def test_a_refused_token_does_not_settle_an_order_that_was_sent_before() -> None:
    def handle(number: int, context: grpc.ServicerContext) -> None:
        lost = grpc.StatusCode.INTERNAL, "the answer is lost"
        context.abort(*(lost if number == 0 else (grpc.StatusCode.UNAUTHENTICATED, "the token is not known here")))

    with serving(handle) as server, pytest.raises(UnknownOutcomeError):
        create(server.address, OrderSecurity(token=Secret("BREW_ORDER_TOKEN", TOKEN)))


# Tokens and plain text


@pytest.mark.parametrize("address", ["orders.example:50081", "192.0.2.1:50081", "[2001:db8::1]:50081"])
def test_a_token_is_not_sent_in_plain_text(address: str) -> None:
    with pytest.raises(UsageError) as refused, OrderClient([address], security=token()):
        pass
    assert refused.value.message == f"the token would go to {address} in plain text: TLS is not set"
    assert TOKEN not in str(refused.value)


def test_to_this_machine_it_is(authority: Authority) -> None:
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        with OrderClient([address], security=token()):
            pass
    with OrderClient(["orders.example:1"], security=replace(authority.trusted(), token=token().token)):
        pass


@pytest.mark.parametrize("text", ["planted two", "plantéd", "planted\x07"])
def test_a_token_that_can_not_be_sent(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        create("127.0.0.1:1", OrderSecurity(token=Secret("BREW_ORDER_TOKEN", text)))
    assert refused.value.message.startswith("BREW_ORDER_TOKEN: no token")
    assert text not in str(refused.value)


def token() -> OrderSecurity:
    return OrderSecurity(token=Secret("BREW_ORDER_TOKEN", TOKEN))


# Doctor


def test_doctor_says_what_keeps_clients_away(authority: Authority, other: Authority) -> None:
    with tls(other.issue()) as server:
        (finding,) = orders.check(server.address, authority.trusted())
    assert finding.verdict is Verdict.FAIL
    assert "no authority in" in finding.found
    assert finding.mend == "set BREW_ORDER_CA_FILE to the certificate of the authority that issued it"
