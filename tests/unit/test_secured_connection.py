"""How the Kafka client in Python authenticates, where connections break."""

import socket
import time

import pytest
from kafka.conn import ConnectionStates

from brewctl.delivery.broker.kafka_python import secured
from brewctl.security import KafkaSecurity, Protocol, Secret


def test_a_connection_that_broke_before_its_first_words_is_followed_by_one_that_says_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a consumer waits for an answer to what it never sent, as long as a request may take."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        security = KafkaSecurity(Protocol.SASL_PLAINTEXT, username="brew", password=Secret(text="secret"))
        options = secured.options(security, [f"127.0.0.1:{port}"])
        connection = secured.SecuredConnection(
            "127.0.0.1", port, socket.AF_INET, **options, api_version=(2, 5, 0), reconnect_backoff_ms=0
        )

        def broken(_data: bytes) -> int:
            raise ConnectionResetError

        with monkeypatch.context() as patch:
            patch.setattr(connection, "_send_bytes_blocking", broken)
            connect(connection, ConnectionStates.DISCONNECTED)
        server.accept()[0].close()
        connect(connection, ConnectionStates.AUTHENTICATING)
        with server.accept()[0] as peer:
            peer.settimeout(20)
            assert b"SCRAM-SHA-512" in peer.recv(4096)
        connection.close()


def connect(connection: secured.SecuredConnection, wanted: ConnectionStates) -> None:
    """Go on connecting until it comes to that."""
    deadline = time.monotonic() + 20
    connection.connect()
    while connection.state != wanted:
        assert time.monotonic() < deadline, connection.state
        connection.connect()
