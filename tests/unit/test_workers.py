"""The port that workers share, and how often one that dies is started again."""

import contextlib
import socket
import threading

import pytest

from brewctl import lifecycle
from brewctl.config import LogFormat, Settings
from brewctl.errors import PortError
from brewctl.roles import workers
from brewctl.roles.shared_port import held

HOST = "127.0.0.1"


def sharing(port: int) -> socket.socket:
    return socket.create_server((HOST, port), reuse_port=True)


def test_a_held_port_is_for_those_who_share_it() -> None:
    with held(HOST, 0) as port:
        for host in (HOST, "0.0.0.0"):
            with pytest.raises(OSError, match="in use"), socket.create_server((host, port)):
                pass
            with pytest.raises(PortError, match=f"port {port} on {host} "), held(host, port):
                pass
        with sharing(port), sharing(port), socket.create_connection((HOST, port)):
            pass
    with socket.create_server((HOST, port)):
        pass


def test_nobody_is_called_by_who_only_holds_the_port() -> None:
    with held(HOST, 0) as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))


@pytest.mark.parametrize("share", [False, True])
def test_a_port_with_a_server_is_not_to_be_had(share: bool) -> None:
    with socket.create_server((HOST, 0), reuse_port=share) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortError), held(HOST, port):
            pass


def test_a_port_whose_connections_fade_away_is_to_be_had() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection((HOST, port)) as client:
            # Who ends a connection keeps it for a minute: as a server that drains does.
            server.accept()[0].close()
            assert client.recv(1) == b""
    with held(HOST, port) as again:
        assert again == port


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_hosts_that_are_more_than_one_address(host: str) -> None:
    with held(host, 0) as port, pytest.raises(OSError, match="in use"):
        socket.create_server((HOST, port))


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", ""])
def test_a_host_that_is_not_this_one(host: str) -> None:
    with pytest.raises(PortError, match=f"port 50081 on {host} can't be listened on"), held(host, 50081):
        pass


def test_an_address_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is found as ::1 too where there is no IPv6, and an address may be found twice."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("192.0.2.1", HOST, HOST)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)
    with held("localhost", 0) as port, sharing(port):
        pass


def test_there_is_a_pause_before_each_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    stop = threading.Event()
    crew = workers.Workers(
        Settings(), node="order-1", count=1, host=HOST, port=0, log_format=LogFormat.LOGFMT, verbose=False
    )

    class Pause(lifecycle.Backoff):
        def pause(self) -> bool:
            done.append("pause")
            if len(done) == 6:
                stop.set()
            return super().pause()

    def dies(name: str, *_: object) -> int:
        crew.listening.add(name)
        done.append("died")
        return -9

    monkeypatch.setattr(lifecycle, "Backoff", Pause)
    monkeypatch.setattr(crew, "_play", dies)
    with contextlib.suppress(SystemExit):
        crew.run(stop)
    assert done == ["died", "pause"] * 3
