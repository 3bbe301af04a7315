"""The HTTP endpoint: pages by path, and clients that hang, which delay nobody."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from brewctl.errors import PortError, UsageError
from brewctl.lifecycle import wait_until
from brewctl.probes import endpoint
from brewctl.probes.endpoint import Address
from brewctl.probes.pages import TEXT, Answer

FREE = Address("127.0.0.1", 0)
SOON_S = 20.0


def asked(where: Address, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(where.host.strip("[]"), where.port, timeout=SOON_S)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


@contextlib.contextmanager
def connected(where: Address) -> Iterator[socket.socket]:
    with socket.create_connection((where.host.strip("[]"), where.port), timeout=SOON_S) as client:
        yield client


def page(text: str) -> Callable[[], Answer]:
    return lambda: Answer(200, TEXT, text.encode())


PAGES = {"/metrics": page("numbers\n"), "/livez": lambda: Answer(503, TEXT, b"stuck\n")}


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9464", "127.0.0.1", 9464), ("[::1]:9464", "[::1]", 9464), ("localhost:0", "localhost", 0)],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert endpoint.address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":9464", "9464", "localhost", "localhost:", "localhost:x", "localhost:65536", "::1:9464", "a b:1", "h:-1"],
)
def test_another_text_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"--http .* is not HOST:PORT: for example"):
        endpoint.address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_it_serves_its_pages_alone(host: str) -> None:
    if host == "[::1]" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with endpoint.serving(Address(host, 0), PAGES) as where:
        status, body, headers = asked(where, "/metrics")
        assert (status, body, headers["Content-Type"]) == (200, "numbers\n", TEXT)
        assert asked(where, "/metrics?name[]=up")[:2] == (200, "numbers\n")
        assert asked(where, "/livez")[:2] == (503, "stuck\n")
        status, body, _ = asked(where, "/other")
        assert status == 404
        assert "/metrics, /livez" in body
        status, body, headers = asked(where, "/metrics", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, "", "8")
        status, _, headers = asked(where, "/metrics", "POST")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert asked(where, "/metrics", "BREW")[0] == 501


def test_bytes_that_are_no_request_are_answered_and_cost_nobody_anything() -> None:
    with endpoint.serving(FREE, PAGES) as where:
        with connected(where) as client:
            client.sendall(b"\x16\x03\x01\x00\x00 no http\r\n\r\n")
            assert b"400" in client.recv(1000)
        assert asked(where, "/metrics")[0] == 200


def test_a_page_that_fails_is_an_answer() -> None:
    def failing() -> Answer:
        raise RuntimeError("no such thing")

    with endpoint.serving(FREE, {"/metrics": failing, "/livez": page("well")}) as where:
        status, body, _ = asked(where, "/metrics")
        assert status == 500
        assert "no such thing" not in body
        assert asked(where, "/livez")[0] == 200


def test_a_taken_port_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortError) as caught, endpoint.serving(Address("127.0.0.1", port), PAGES):
            pass
    assert f"port {port} on 127.0.0.1 can't be listened on (address already in use)" in str(caught.value)
    assert caught.value.hint.endswith("or choose another with --http")


def test_an_address_of_another_machine_names_the_option() -> None:
    with pytest.raises(PortError, match="give --http an address of this machine"):  # noqa: SIM117
        with endpoint.serving(Address("192.0.2.1", 0), PAGES):
            pass


def ended(client: socket.socket) -> bool:
    """Wait for the end of a connection."""
    with contextlib.suppress(ConnectionError):
        while client.recv(1000):
            pass
    return True


def test_many_scrapes_that_hang_delay_no_other_one() -> None:
    """More of them than may be connected, each for ever: without a bound in time, which is not reached here."""
    with contextlib.ExitStack() as hanging, endpoint.serving(FREE, PAGES, within_s=600, most=4) as where:
        silent = [hanging.enter_context(connected(where)) for _ in range(20)]
        assert asked(where, "/metrics")[:2] == (200, "numbers\n")
        assert all(ended(client) for client in silent[:16])  # the oldest made room


def test_a_scrape_that_says_nothing_is_ended_in_time() -> None:
    with endpoint.serving(FREE, PAGES, within_s=0.2) as where, connected(where) as client:
        assert ended(client)


def test_a_scrape_that_sends_a_byte_now_and_then_is_ended_in_time() -> None:
    with endpoint.serving(FREE, PAGES, within_s=0.5) as where, connected(where) as client:
        over = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    client.sendall(b"G")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert ended(client)
        finally:
            over.set()
            thread.join()


def test_a_scrape_that_does_not_read_its_answer_is_ended_in_time() -> None:
    big = {"/metrics": page("x" * 50_000_000)}
    with endpoint.serving(FREE, big, within_s=0.5) as where, connected(where) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until("its thread's end", lambda: not _answering(), timeout_s=SOON_S)


def _answering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def test_where_pages_hang_the_threads_are_bounded() -> None:
    over = threading.Event()

    def hanging() -> Answer:
        over.wait(SOON_S)
        return Answer(200, TEXT, b"late")

    with contextlib.ExitStack() as clients, endpoint.serving(FREE, {"/readyz": hanging}, most=3) as where:
        before = len(_answering())
        for _ in range(20):
            clients.enter_context(connected(where)).sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        last = clients.enter_context(connected(where))
        assert ended(last)  # turned away: so all of them were seen
        assert len(_answering()) - before <= 6
        over.set()


def test_its_end_waits_for_no_client() -> None:
    over = threading.Event()

    def hanging() -> Answer:
        over.wait()
        return Answer(200, TEXT, b"late")

    with contextlib.ExitStack() as clients:
        with endpoint.serving(FREE, {"/readyz": hanging}, within_s=600) as where:
            silent, asking = (clients.enter_context(connected(where)) for _ in range(2))
            asking.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            wait_until("both connected", lambda: len(_answering()) >= 2, timeout_s=SOON_S)
        assert ended(silent)
        assert ended(asking)
        over.set()
    with pytest.raises(ConnectionRefusedError), connected(where):
        pass


def test_the_port_is_free_again_at_once() -> None:
    with endpoint.serving(FREE, PAGES) as where:
        asked(where, "/metrics")
    with endpoint.serving(where, PAGES) as again:
        assert again == where
        assert asked(where, "/metrics")[0] == 200


def test_a_client_that_vanishes_costs_nothing() -> None:
    with endpoint.serving(FREE, PAGES) as where:
        for _ in range(5):
            with connected(where) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                client.sendall(b"GET /met")
        assert asked(where, "/metrics")[0] == 200
