"""Servers behind a proxy, and clients that talk through it."""

import hashlib
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from brewctl.lab.network.proxy import Proxy
from brewctl.lifecycle import wait_until

PATIENCE_S = 30


NEVER_S = 3600.0


class Upstream:
    """A server: `serve` has each connection, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self.accepted: list[socket.socket] = []
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError, ValueError):  # closed
            while True:
                select.select([self._listener], [], [])  # accept() takes a descriptor before anyone connects
                end = self._listener.accept()[0]
                end.settimeout(PATIENCE_S)
                self.accepted.append(end)
                self._threads.append(threading.Thread(target=self._run, args=(end,)))
                self._threads[-1].start()

    def _run(self, end: socket.socket) -> None:
        with end, suppress(OSError):
            self._serve(end)

    def close(self) -> None:
        for end in (self._listener, *self.accepted):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def echo(end: socket.socket) -> None:
    while piece := end.recv(65536):
        end.sendall(piece)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Serve = Callable[[Callable[[socket.socket], None]], Upstream]


Connect = Callable[[Proxy], socket.socket]


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    def start(handle: Callable[[socket.socket], None]) -> Upstream:
        upstream = Upstream(handle)
        stack.callback(upstream.close)
        return upstream

    return start


@pytest.fixture
def echoing(serve: Serve, stack: ExitStack) -> Proxy:
    """A proxy in front of an echo server."""
    return stack.enter_context(Proxy("echo", serve(echo).address))


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    def connect(proxy: Proxy) -> socket.socket:
        return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S))

    return connect


def read(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := end.recv(size - len(data))):
        data += piece
    return data


def read_to_end(end: socket.socket) -> bytes:
    return b"".join(iter(lambda: end.recv(65536), b""))


def answers(end: socket.socket, question: bytes = b"question") -> bool:
    end.sendall(question)
    return read(end, len(question)) == question


def is_reset(end: socket.socket) -> bool:
    try:
        end.recv(1)
    except ConnectionResetError:
        return True
    return False


def is_turned_away(proxy: Proxy) -> bool:
    """Where the client is slow, connecting itself fails already."""
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as end:
            return is_reset(end)
    except ConnectionResetError:
        return True


def says_nothing(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        end.recv(1)
    except BlockingIOError:
        return True
    finally:
        end.settimeout(PATIENCE_S)
    return False


def soon(what: str, condition: Callable[[], bool]) -> None:
    wait_until(what, condition, timeout_s=PATIENCE_S, every_s=0.01)


def never(proxy: Proxy) -> None:
    proxy.latency(NEVER_S, chance=random.Random(1))


def reset_on_close(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def exchange(end: socket.socket, seed: int, size: int) -> bool:
    """Send random pieces, read the echo at the same time; say whether it is the same to the byte."""
    chance = random.Random(seed)
    sent = hashlib.sha256()

    def send() -> None:
        left = size
        while left:
            piece = chance.randbytes(min(left, chance.choice([1, 10, 1000, 100_000])))
            left -= len(piece)
            sent.update(piece)
            end.sendall(piece)
        end.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = read_to_end(end)
    sender.join()
    return hashlib.sha256(got).digest() == sent.digest()
