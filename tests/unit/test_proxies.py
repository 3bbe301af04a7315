"""Calls of an order-service reach it whatever proxy the shell names for the web, and which engine for libraries."""

from collections.abc import Iterator

import pytest

from brewctl.client import OrderClient
from brewctl.doctor import Verdict, orders
from tests.conftest import run
from tests.order_server import OrderServer, serving

# A proxy that is not there, in each variable that gRPC reads.
NAMES = ("grpc_proxy", "https_proxy", "http_proxy")
PROXIES = {**dict.fromkeys(NAMES, "http://127.0.0.1:9"), "no_proxy": "", "NO_PROXY": "", "no_grpc_proxy": ""}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OrderServer]:
    """An order-service, in a shell with proxies."""
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    with serving() as server:
        yield server


def test_an_order_is_made(server: OrderServer) -> None:
    with OrderClient([server.address], timeout_s=20) as client:
        assert client.create("c1", amount_cents=1, currency="EUR")


def test_the_command_makes_an_order(server: OrderServer) -> None:
    made = run("create-order", "--customer", "c1", "--addr", server.address)
    assert (made.returncode, made.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "engine"),
    [("PSYCOPG_IMPL", "c"), ("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "cpp"), ("GRPC_POLL_STRATEGY", "nowhere")],
)
def test_the_command_makes_an_order_with_the_engines_that_it_is_installed_with(
    server: OrderServer, monkeypatch: pytest.MonkeyPatch, name: str, engine: str
) -> None:
    monkeypatch.setenv(name, engine)
    made = run("create-order", "--customer", "c1", "--addr", server.address)
    assert (made.returncode, made.stderr) == (0, "")


def test_doctor_asks_the_order_service_itself(server: OrderServer) -> None:
    """It is one without health checks, and answers so: nothing is said of a proxy's refusal."""
    (finding,) = orders.check(server.address)
    assert finding.verdict is Verdict.FAIL
    assert "is a gRPC server, and no order-service" in finding.found
