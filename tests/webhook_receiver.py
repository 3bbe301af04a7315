"""A receiver of webhooks that does to each call what a test wants: fails, hangs, answers slowly, lies, resets.

It speaks HTTP with its own hands: a server that knows HTTP would not break it.
"""

import contextlib
import http.client
import json
import select
import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from standardwebhooks import Webhook

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the end of the connection is a reset
Do = Callable[["Call"], None]


@dataclass
class Call:
    """A call as it came, with the socket that it waits at."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: str
    connection: socket.socket
    released: threading.Event  # set once the receiver ends

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def customer(self) -> str:
        return str(self.json["data"].get("customer_id", ""))

    def verify(self, secret: str) -> None:
        """Check the signature as any receiver does. Raises WebhookVerificationError."""
        Webhook(secret).verify(self.body, dict(self.headers))

    def send(self, text: str) -> None:
        self.connection.sendall(text.encode())


def answer(status: int = 200, body: str = "", **headers: str) -> Do:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    text = f"HTTP/1.1 {status} Said\r\n{lines}content-length: {len(body.encode())}\r\n\r\n{body}"
    return lambda call: call.send(text)


def hang(call: Call) -> None:
    """Say nothing until the caller has gone."""
    while not call.released.is_set():
        if select.select([call.connection], [], [], 0.05)[0] and not call.connection.recv(1, socket.MSG_PEEK):
            return


def trickle(call: Call) -> None:
    """Send a byte at a time of an answer that says that it is fine: no read takes long, and the answer never ends."""
    call.send("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while not call.released.wait(0.05):
        call.send("x")


def trickle_headers(call: Call) -> None:
    call.send("HTTP/1.1 200 OK\r\n")
    while not call.released.wait(0.05):
        call.send("x: y\r\n")


def reset(call: Call) -> None:
    call.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def garbage(call: Call) -> None:
    call.send("220 smtp.example.com ESMTP\r\n")


def lie(call: Call) -> None:
    """Say that all is well, and end before what was announced has come."""
    call.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nhalf")


def endless(call: Call) -> None:
    call.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while not call.released.is_set():
        call.send(f"4000\r\n{'x' * 0x4000}\r\n")


@dataclass
class Receiver:
    """Takes calls, and does to each what `how` returns for it."""

    how: Callable[[Call], Do] = field(default=lambda _call: answer())
    calls: list[Call] = field(default_factory=list)
    done: list[str] = field(default_factory=list)  # keys of the calls that were answered, or ended
    port: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    at_once: int = 0
    in_hand: Counter[str] = field(default_factory=Counter)  # calls that wait for their answer, by customer
    most: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _open: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/secret-path"

    def always(self, do: Do) -> None:
        self.how = lambda _call: do

    def keys(self) -> list[str]:
        return [call.key for call in list(self.calls)]

    def customers(self) -> list[str]:
        return [call.customer for call in list(self.calls)]

    def __enter__(self) -> Self:
        self.open()
        return self

    def open(self) -> None:
        """Listen, on the port that it had before, if any."""
        receiver = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with receiver.lock:
                    receiver.connections += 1
                    receiver._open.append(self.connection)
                with contextlib.suppress(OSError, ValueError):
                    while call := receiver._read(self.rfile, self.connection):
                        with receiver.lock:
                            receiver.calls.append(call)
                            receiver.at_once += 1
                            receiver.in_hand[call.customer] += 1
                            receiver.most[call.customer] = max(
                                receiver.most[call.customer], receiver.in_hand[call.customer]
                            )
                        do = receiver.how(call)
                        try:
                            do(call)
                        finally:
                            with receiver.lock:
                                receiver.at_once -= 1
                                receiver.in_hand[call.customer] -= 1
                                receiver.done.append(call.key)
                        if do in {reset, garbage, lie}:
                            return

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            request_queue_size = 64
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.close()

    def close(self) -> None:
        """Listen no more, and end the connections that there are."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self.lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _read(self, lines: Any, connection: socket.socket) -> Call | None:
        words = lines.readline(65537).decode().split()
        if len(words) != 3:
            return None
        headers = {name.lower(): value for name, value in http.client.parse_headers(lines).items()}
        body = lines.read(int(headers.get("content-length", 0))).decode()
        return Call(words[0], words[1], headers, body, connection, self.released)


@contextlib.contextmanager
def receiving(do: Do | None = None, *, port: int = 0) -> Iterator[Receiver]:
    """Receive while the block runs; by default each call is answered with 200."""
    with Receiver(port=port) as receiver:
        if do:
            receiver.always(do)
        yield receiver
