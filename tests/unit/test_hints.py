"""Hints are true: what an error says to do mends its cause, in the situation in which a user meets it."""

import errno
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from brewctl.client import OrderClient
from brewctl.client.failed_call import Failure
from brewctl.config import DEFAULT_DATABASE_URL, Settings
from brewctl.delivery import advice
from brewctl.errors import BrewError, PortError, UnreachableError, _other_place
from tests.conftest import run

OWN = "postgresql://shop@db.shop/shop"
SANDBOX = "postgresql://brew:secret@127.0.0.1:27630/brew"


def settings(url: str = OWN, *configured: str) -> Settings:
    return Settings(database_url=url, brokers=("kafka.shop:9092",), configured=frozenset(configured))


# PostgreSQL and Kafka


@pytest.mark.parametrize(
    ("where", "reason", "hint"),
    [
        (settings(OWN, "database_url"), "refused the connection", "start it (`brewctl up` where it is the sandbox's)"),
        (settings(OWN, "database_url"), "refused the password", "correct the password in BREW_DATABASE_URL"),
        (settings(OWN, "database_url"), "wants a password", "put the password into BREW_DATABASE_URL"),
        (settings(OWN, "database_url"), "has no such database or role", "create it there in psql, or correct"),
        (settings(OWN, "database_url"), "is an unknown host", "correct the host in BREW_DATABASE_URL"),
        (settings(OWN, "database_url"), "has no connection left", "end some sessions, or raise max_connections"),
        (settings(SANDBOX), "has no connection left", "end some sessions, or raise max_connections"),
        (settings(SANDBOX), "refused the connection", "run `brewctl up`"),
        (settings(DEFAULT_DATABASE_URL), "refused the connection", "run `brewctl up`, or set BREW_DATABASE_URL"),
        # Another server than ours listens on the default port.
        (settings(DEFAULT_DATABASE_URL), "refused the password", "run `brewctl up`, or set BREW_DATABASE_URL"),
    ],
)
def test_a_database_that_is_away(where: Settings, reason: str, hint: str) -> None:
    assert advice.for_postgres(where, reason).startswith(hint)


def test_brokers_that_are_away() -> None:
    assert advice.for_kafka(settings(OWN, "brokers")).startswith(
        "start them (`brewctl up` where they are the sandbox's)"
    )
    assert advice.for_kafka(settings(SANDBOX)) == "run `brewctl up`"
    assert advice.for_kafka(Settings()) == "run `brewctl up`, or set BREW_KAFKA_BROKERS"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("BREW_DATABASE_URL", "postgresql://brew@127.0.0.1:1/shop"), ("BREW_KAFKA_BROKERS", "127.0.0.1:1")],
)
def test_a_user_who_has_set_a_variable_is_not_told_to_set_it(variable: str, value: str, tmp_path: object) -> None:
    command = ("counts",) if variable == "BREW_DATABASE_URL" else ("groups",)
    done = run(*command, env={variable: value, "BREW_HOME": str(tmp_path)})
    assert done.returncode == 3
    assert f"or correct {variable}" in done.stderr
    assert f"set {variable}" not in done.stderr


# Ports


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = PortError("127.0.0.1", port)
    assert error.message == f"port {port} on 127.0.0.1 can't be listened on (address already in use)"
    assert error.hint == f"see who has it with `ss -ltnp sport = :{port}`, or choose another with --port"
    # By now it is free.
    assert PortError("127.0.0.1", port).hint.startswith("run it again")


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_a_host_that_is_another_machine(host: str) -> None:
    assert PortError(host, 50081).hint == "give --host an address of this machine, such as 127.0.0.1"


def test_a_privileged_port() -> None:
    assert (
        _other_place(PermissionError(errno.EACCES, "Permission denied"), 80) == "choose a port above 1023 with --port"
    )


# order-service


def failure(address: str) -> BrewError:
    with OrderClient([address], timeout_s=2) as client, pytest.raises(BrewError) as failed:
        client.create("c1", amount_cents=450, currency="EUR")
    return failed.value


def test_nobody_listens_on_this_machine() -> None:
    assert failure("127.0.0.1:1").hint.startswith("run `brewctl serve order --port 1`, or correct BREW_ORDER_ADDRS")


def test_nobody_listens_on_another_machine() -> None:
    assert failure("127.0.0.2:1").hint.startswith("start order-service there, or correct BREW_ORDER_ADDRS")


def test_an_unknown_host() -> None:
    assert failure("nowhere.invalid:1").hint == "correct the host in BREW_ORDER_ADDRS or --addr"


@pytest.fixture
def website() -> Iterator[str]:
    """A server that speaks HTTP/1.1, such as a proxy."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_something_else_listens(website: str) -> None:
    told = failure(website)
    assert isinstance(told, UnreachableError)
    assert "serve order" not in told.hint
    assert f"`brewctl doctor --addr {website}`" in told.hint or "ask again with" in told.hint


class Refused(grpc.RpcError):  # type: ignore[misc] # grpc has no types
    """An answer of a service."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "the database is away"

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (grpc.StatusCode.UNAVAILABLE, "`brewctl doctor --addr h:1` says what it lacks"),
        (grpc.StatusCode.ALREADY_EXISTS, "give another order another --idempotency-key"),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            "it is another gRPC server, or an older brewctl: correct BREW_ORDER_ADDRS or --addr",
        ),
    ],
)
def test_an_answer_that_is_no_order(code: grpc.StatusCode, hint: str) -> None:
    assert Failure(Refused(code), "h:1").error().hint == hint
