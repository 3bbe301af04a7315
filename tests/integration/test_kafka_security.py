"""The story over TLS and SASL, and what changes while roles run: passwords, certificates."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brewctl.client import OrderClient
from brewctl.config import KafkaClient
from brewctl.delivery.broker import Place, Producer, Record, open_admin
from brewctl.lab.network.proxy import Proxy
from brewctl.security import Mechanism, Secret
from tests.conftest import Rig, open_rig
from tests.integration.secured_broker import PASSWORD, USER, Secured, locked, secured_broker

ORDERS = 20
CLIENTS = pytest.mark.parametrize("client", list(KafkaClient))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


@pytest.fixture
def secured_rig(
    secured: Secured, servers: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Rig]:
    """A rig whose Kafka is one listener of the secured broker: (listener, what is changed of its settings, client)."""
    listener, changes, client = request.param
    settings = secured.settings(listener, **changes)
    places = servers | {"BREW_KAFKA_BROKERS": ",".join(settings.brokers)}
    with open_rig(places, tmp_path / "logs", kafka_client=client, kafka_security=settings.kafka_security) as rig:
        yield rig


def buy(address: str) -> None:
    with OrderClient([address]) as client:
        for _ in range(ORDERS):
            client.create("c1", amount_cents=450, currency="EUR")


def reserved(rig: Rig) -> int:
    (count,) = rig.connection.execute("SELECT count(*) FROM inventory_reservations").fetchone() or (0,)
    return int(count)


@pytest.mark.parametrize(
    "secured_rig",
    [
        pytest.param((listener, changes, client), id=f"{listener}-{label}-{client}")
        for client in KafkaClient
        for listener, label, changes in (
            ("LOCKED", "scram-512", {}),
            ("SCRAM256", "scram-256", {}),
            ("LOCKED", "plain", {"mechanism": Mechanism.PLAIN}),
            ("CLEAR", "scram-512", {}),
            ("TLS", "no-user", {}),
        )
    ],
    indirect=True,
)
def test_an_order_goes_to_its_reservation_over_a_secured_kafka(secured_rig: Rig) -> None:
    rig = secured_rig
    rig.start("inventory-1", "consume", "inventory")
    _, address = rig.serve()
    buy(address)
    rig.wait("every order is reserved", lambda: reserved(rig) == ORDERS)
    shown = rig.brewctl("groups")
    assert shown.returncode == 0, shown.stderr
    assert "inventory-1" in shown.stdout


@CLIENTS
def test_a_client_proves_who_it_is_by_its_certificate(secured: Secured, client: KafkaClient) -> None:
    pair = {"certificate": str(secured.folder / "client.pem"), "key": str(secured.folder / "client.key")}
    send(secured, "MUTUAL", client, **pair)


def send(secured: Secured, listener: str, client: KafkaClient, **security: object) -> None:
    """Send one record to a topic that is made for it."""
    settings = dataclasses.replace(secured.settings(listener, **security), kafka_client=client)
    with open_admin(settings) as admin:
        admin.create_topic("sent", replicas=1)
    producer = Producer(settings, node="test")
    (outcome,) = producer.send([Record("sent", b"k", b"v", [])], timeout_s=20)
    producer.close()
    assert isinstance(outcome, Place)


@CLIENTS
def test_a_password_that_changes_while_roles_run_is_read_again_at_the_next_connection(
    secured: Secured, servers: dict[str, str], tmp_path: Path, client: KafkaClient
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    settings = secured.settings("PROXIED", password=Secret("BREW_KAFKA_PASSWORD", file=str(file)))
    places = servers | {"BREW_KAFKA_BROKERS": f"127.0.0.1:{secured.proxy_port}"}
    upstream = int(settings.brokers[0].rpartition(":")[2])
    with (
        Proxy("kafka", ("127.0.0.1", upstream), port=secured.proxy_port) as proxy,
        open_rig(places, tmp_path / "logs", kafka_client=client, kafka_security=settings.kafka_security) as rig,
    ):
        inventory = rig.start("inventory-1", "consume", "inventory")
        order, address = rig.serve()
        buy(address)
        rig.wait("every order is reserved", lambda: reserved(rig) == ORDERS)
        try:
            # First at the server alone: new connections are refused, and nothing is lost.
            secured.change_password(USER, "another one")
            proxy.reset()
            buy(address)
            for node in (inventory, order):
                rig.wait(f"{node.name} says that it is refused", lambda log=node.log: "refused" in log.read_text())  # type: ignore[misc]
            assert inventory.alive
            assert order.alive
            assert reserved(rig) == ORDERS
            file.write_text("another one\n")
            rig.wait("every order is reserved", lambda: reserved(rig) == 2 * ORDERS)
        finally:
            secured.change_password(USER, PASSWORD)
            file.write_text(PASSWORD)
        assert PASSWORD not in inventory.log.read_text() + order.log.read_text()
        said = [line for line in inventory.log.read_text().splitlines() if "kafka_refused" in line]
        assert len(said) <= 1


@CLIENTS
def test_a_certificate_that_is_replaced_on_disk_is_used_by_the_next_connection(
    secured: Secured, tmp_path: Path, client: KafkaClient
) -> None:
    for name in ("client", "stranger"):
        (tmp_path / f"{name}.key").write_bytes((secured.folder / f"{name}.key").read_bytes())
    own, key = tmp_path / "own.pem", tmp_path / "own.key"
    own.write_bytes((secured.folder / "client.pem").read_bytes())
    key.write_bytes((secured.folder / "client.key").read_bytes())
    pair = {"certificate": str(own), "key": str(key)}
    send(secured, "MUTUAL", client, **pair)
    own.write_bytes((secured.folder / "stranger.pem").read_bytes())
    key.write_bytes((secured.folder / "stranger.key").read_bytes())
    with pytest.raises(Exception, match="refused the certificate"):
        send(secured, "MUTUAL", client, **pair)


def test_a_connection_that_is_made_again_reads_the_certificates_again(secured: Secured, tmp_path: Path) -> None:
    """Of kafka-python-ng, in one client: its first connection goes on, its next ones have the new files."""
    own = tmp_path / "ca.pem"
    own.write_bytes((secured.folder / "ca.pem").read_bytes())
    settings = secured.settings("TLS", ca=str(own))
    with open_admin(settings) as admin:
        own.write_text("")  # half a replacement
        client = admin._client._client
        for node_id in list(client._conns):
            client.close(node_id)
        with pytest.raises(Exception):  # noqa: B017, PT011 - however it says so
            admin.topics()
        own.write_bytes((secured.folder / "ca.pem").read_bytes())
        assert isinstance(admin.topics(), set)


def test_an_encrypted_key_opens_with_its_password(secured: Secured, tmp_path: Path) -> None:
    key = tmp_path / "locked.key"
    key.write_bytes(locked(secured.folder / "client.key", "open sesame"))
    pair = {"certificate": str(secured.folder / "client.pem"), "key": str(key)}
    for client in KafkaClient:
        send(secured, "MUTUAL", client, **pair, key_password=Secret("BREW_KAFKA_KEY_PASSWORD", "open sesame"))


@CLIENTS
def test_without_tls_nothing_for_it_is_imported(servers: dict[str, str], client: KafkaClient) -> None:
    script = (
        "import sys; from brewctl.config import resolve; from brewctl.delivery.broker import Producer;"
        "import os; Producer(resolve({}, os.environ, {}), node='n').close();"
        "print([name for name in sys.modules if name.startswith('brewctl') and name.endswith(('secured', 'cates'))])"
    )
    env = {**servers, "BREW_KAFKA_CLIENT": client.value, "PATH": ""}
    said = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
