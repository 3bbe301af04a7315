"""A proxy between real sockets: what it forwards, and that it idles, fails and ends well."""

import hashlib
import random
import resource
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
import pytest

from brewctl.errors import BrewError
from brewctl.lab.network.proxy import Proxy
from brewctl.lab.network.relay import Relay
from brewctl.lab.network.wire import ByteStream
from brewctl.lifecycle import wait_until
from tests.unit import proxy_tools
from tests.unit.proxy_tools import (
    PATIENCE_S,
    Connect,
    Serve,
    Upstream,
    answers,
    echo,
    exchange,
    is_reset,
    is_turned_away,
    never,
    read,
    read_to_end,
    reset_on_close,
    soon,
)

stack, serve, echoing, connect = proxy_tools.stack, proxy_tools.serve, proxy_tools.echoing, proxy_tools.connect

HELD_BYTES = 256 * 1024  # at most, each way and connection


def plain(_proxy: Proxy) -> None:
    pass


def late(proxy: Proxy) -> None:
    proxy.latency(0.005, 0.005, chance=random.Random(1))


def late_and_slow(proxy: Proxy) -> None:
    late(proxy)
    proxy.bandwidth(2_000_000)


@pytest.mark.parametrize(("fault", "size"), [(plain, 3_000_000), (late, 200_000), (late_and_slow, 200_000)])
def test_every_byte_arrives_in_order(
    echoing: Proxy, connect: Connect, fault: Callable[[Proxy], None], size: int
) -> None:
    fault(echoing)
    ends = [connect(echoing) for _ in range(4)]
    with ThreadPoolExecutor(len(ends)) as pool:
        assert all(pool.map(lambda seed: exchange(ends[seed], seed, size), range(len(ends))))
    soon("all closed", lambda: echoing.connections() == 0)


def test_the_server_may_end_first(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    got = threading.Event()

    def last_words(end: socket.socket) -> None:
        end.sendall(b"no more")
        end.shutdown(socket.SHUT_WR)
        if read_to_end(end) == b"understood":
            got.set()

    end = connect(stack.enter_context(Proxy("last", serve(last_words).address)))
    assert read_to_end(end) == b"no more"
    end.sendall(b"understood")
    end.shutdown(socket.SHUT_WR)
    assert got.wait(PATIENCE_S)


def test_a_slow_reader_slows_the_sender(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    block = random.Random(1).randbytes(1024 * 1024)
    blocks = 64  # more than the kernel's buffers take
    proxy = stack.enter_context(Proxy("flood", serve(lambda end: end.sendall(block * blocks)).address))
    end = connect(proxy)
    soon("a full proxy", lambda: proxy.held_bytes() == HELD_BYTES)
    assert hashlib.sha256(read_to_end(end)).digest() == hashlib.sha256(block * blocks).digest()


def test_upstream_that_is_not_there(stack: ExitStack, connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    proxy = stack.enter_context(Proxy("absent", address))
    assert is_turned_away(proxy)
    upstream = Upstream(echo, address[1])
    stack.callback(upstream.close)
    assert answers(connect(proxy))


def test_a_reset_reaches_the_other_end(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    seen = threading.Event()

    def crash(end: socket.socket) -> None:
        if read(end, 5) == b"crash":
            reset_on_close(end)
        elif is_reset(end):
            seen.set()

    proxy = stack.enter_context(Proxy("crash", serve(crash).address))
    end = connect(proxy)
    end.sendall(b"crash")
    assert is_reset(end)
    end = connect(proxy)
    end.sendall(b"hello")
    soon("a connection", lambda: proxy.connections() == 1)
    reset_on_close(end)
    end.close()
    assert seen.wait(PATIENCE_S)


def test_close_leaves_nothing(serve: Serve, connect: Connect) -> None:
    upstream = serve(echo)
    descriptors = psutil.Process().num_fds()
    many = 10
    for _ in range(many):
        proxy = Proxy("closing", upstream.address)
        ends = [connect(proxy) for _ in range(5)]
        assert all(answers(end) for end in ends)
        never(proxy)
        ends[0].sendall(b"never")
        soon("bytes under way", lambda proxy=proxy: proxy.held_bytes() > 0)  # type: ignore[misc]
        proxy.close()
        proxy.close()
        assert all(is_reset(end) for end in ends)
        for end in ends:
            end.close()
        assert proxy.connections() == 0
    assert "proxy-closing" not in {thread.name for thread in threading.enumerate()}
    # Other tests' servers may be ending: less than one a proxy is not ours.
    soon("no leak", lambda: psutil.Process().num_fds() < descriptors + many)
    with pytest.raises(BrewError, match="proxy closing is closed"):
        proxy.heal()
    with Proxy("next", upstream.address, port=proxy.port) as after:
        assert after.address == f"127.0.0.1:{proxy.port}"


def test_a_proxy_that_can_not_be_made_says_why(echoing: Proxy) -> None:
    with pytest.raises(BrewError, match=f"proxy other: port {echoing.port} can't be listened on"):
        Proxy("other", ("127.0.0.1", 1), port=echoing.port)
    with pytest.raises(BrewError, match=r"proxy other: host nowhere\.invalid is not known"):
        Proxy("other", ("nowhere.invalid", 1))


def test_what_goes_wrong_ends_one_connection(echoing: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    well, ill = connect(echoing), connect(echoing)
    assert answers(well)
    assert answers(ill)
    with monkeypatch.context() as patch:
        patch.setattr(ByteStream, "send", lambda *_: 1 // 0)
        ill.sendall(b"x")
        assert is_reset(ill)
    assert answers(well)
    assert answers(connect(echoing))


def comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Say whether a proxy's thread wakes up next to never in some tenth of a second."""
    turns = 0
    turn = Relay.turn

    def counted(relay: Relay) -> None:
        nonlocal turns
        turns += 1
        turn(relay)

    def rests() -> bool:
        nonlocal turns
        turns = 0
        threading.Event().wait(0.1)
        return turns <= 3

    with monkeypatch.context() as patch:
        patch.setattr(Relay, "turn", counted)
        wait_until("rest", rests, timeout_s=PATIENCE_S)
    return True


def test_it_sleeps_while_nothing_happens(
    serve: Serve, stack: ExitStack, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def read_nothing(_end: socket.socket) -> None:
        over.wait(PATIENCE_S)

    upstream = serve(read_nothing)
    stack.callback(over.set)
    proxy = stack.enter_context(Proxy("idle", upstream.address))
    idle, half_closed, stuck = (connect(proxy) for _ in range(3))
    half_closed.shutdown(socket.SHUT_WR)
    stuck.setblocking(False)

    def full() -> bool:
        with suppress(BlockingIOError):
            while True:
                stuck.send(bytes(65536))
        return proxy.held_bytes() == HELD_BYTES

    soon("a full proxy", full)
    soon("all accepted", lambda: proxy.connections() == 3)
    assert comes_to_rest(monkeypatch)
    held = proxy.held_bytes()
    never(proxy)
    idle.sendall(b"late")
    soon("bytes under way", lambda: proxy.held_bytes() > held)
    assert comes_to_rest(monkeypatch)
    proxy.black_hole()
    idle.shutdown(socket.SHUT_WR)
    assert comes_to_rest(monkeypatch)


def test_no_descriptor_is_free(echoing: Proxy, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [stack.enter_context(socket.socket()) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    for end in ends:
        end.settimeout(PATIENCE_S)
        end.connect(("127.0.0.1", echoing.port))
    assert comes_to_rest(monkeypatch)
    assert echoing.connections() == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(answers(end) for end in ends)
