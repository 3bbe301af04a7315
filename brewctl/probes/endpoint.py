"""A small HTTP server beside a process's work, for scrapers and probes. Each request renders its page anew.

It uses the standard library's server, with one request a connection. A client that sends or reads nothing occupies one
thread for some seconds. If there are too many connections, the oldest are closed. So a slow client delays neither other
clients nor the process's work nor its end.
"""

import contextlib
import http.client
import http.server
import os
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from brewctl import log
from brewctl.errors import PortError, UsageError
from brewctl.probes.pages import TEXT, Answer, Page

__all__ = ["TEXT", "Address", "Answer", "Page", "address", "ask", "serving", "serving_locally"]

logger = log.get(__name__)

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_MOST_PORT = 65535
# The longest path of a socket in the file system, in bytes: 107 on Linux, 103 on macOS.
_LONGEST_NAME = 103
# How often the accepting thread checks for the server's end, and for connections that are too old.
_LOOK_S = 0.2


class Address(NamedTuple):
    """The host and port to listen on. Port 0 chooses a free one."""

    host: str
    port: int


def address(text: str, *, option: str = "--http") -> Address:
    """Read HOST:PORT, or [HOST]:PORT for IPv6. Raises UsageError."""
    found = _ADDRESS.fullmatch(text.strip())
    if not found or int(found["port"]) > _MOST_PORT:
        raise UsageError(f"{option} {text[:80]!r} is not HOST:PORT", hint="for example 127.0.0.1:9464, or [::1]:9464")
    return Address(found["host"], int(found["port"]))


@contextlib.contextmanager
def serving(
    where: Address, pages: Mapping[str, Page], *, option: str = "--http", within_s: float = 10.0, most: int = 32
) -> Iterator[Address]:
    """Answer GET and HEAD for `pages`, by path, while the block runs; yield the address that it listens on.

    A connection may last `within_s` seconds; of more than `most` at a time the oldest are closed. Raises PortError if
    the address can't be listened on; it names `option` as the one to change.
    """
    try:
        host = where.host.strip("[]")
        (family, _, _, _, place), *_ = socket.getaddrinfo(
            host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        server = _server(family, place, pages, within_s=within_s, most=most)
    except OSError:
        raise PortError(where.host, where.port, host_option=option, port_option=option) from None
    with _running(server):
        yield Address(where.host, server.server_address[1])


@contextlib.contextmanager
def serving_locally(path: Path, pages: Mapping[str, Page], *, within_s: float = 10.0, most: int = 32) -> Iterator[None]:
    """Answer as `serving` does, on a socket in the file system, replacing a dead process's. Raises OSError."""
    path.unlink(missing_ok=True)
    with _fitting(path) as name:
        server = _server(socket.AF_UNIX, name, pages, within_s=within_s, most=most)
    with _running(server):
        yield


@contextlib.contextmanager
def _fitting(path: Path) -> Iterator[str]:
    """Yield a path of the socket that is short enough: through /proc if the folder's own path is too long."""
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, page: str, *, within_s: float) -> Answer:
    """Get a page from a process that is `serving_locally`. Raises OSError; TimeoutError after `within_s` seconds."""
    connection = _LocalConnection(path, within_s)
    with contextlib.closing(connection):
        try:
            connection.request("GET", page)
            said = connection.getresponse()
            return Answer(said.status, said.getheader("Content-Type", TEXT), said.read())
        except http.client.HTTPException as error:
            raise ConnectionError(f"it sent no answer ({type(error).__name__})") from error


class _LocalConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, within_s: float) -> None:
        super().__init__("localhost", timeout=within_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with _fitting(self._path) as name:
            self.sock.connect(name)


@contextlib.contextmanager
def _running(server: "_Server") -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(_LOOK_S,), name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up(after_s=0)


def _server(family: int, place: Any, pages: Mapping[str, Page], *, within_s: float, most: int) -> "_Server":
    # A class of its own, because the constructor reads the address family from the class.
    kind = type("_Server", (_Server,), {"address_family": family})
    server: _Server = kind(place, pages, within_s=within_s, most=most)
    return server


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One daemon thread for each connection. Not an HTTPServer, which first looks up the host's name."""

    allow_reuse_address = True  # also while connections of the last process are in TIME_WAIT
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, place: Any, pages: Mapping[str, Page], *, within_s: float, most: int) -> None:
        self.pages = pages
        self.within_s = within_s
        self._most = most
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._open: dict[socket.socket, float] = {}  # connection → when it was accepted, the oldest first
        super().__init__(place, _Handler)
        self.socket.settimeout(within_s)  # for `accept`: the client may have left already

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Make room for a new connection. False if the threads of closed connections have not ended."""
        del client_address
        with self._lock:
            # Connections may come faster than the threads of closed ones notice the close. A moment is enough for
            # them, unless the pages themselves hang.
            if not self._room.wait_for(lambda: len(self._open) < 2 * self._most, timeout=_LOOK_S):
                return False
            self._open[request] = time.monotonic()
            late = list(self._open)[: -self._most]
        for each in late:
            _hang_up(each)
        return True

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
            self._room.notify()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that are too old.

        By age, not by a timeout of each wait: a client that sends a byte now and then would never run into that.
        """
        self.hang_up(after_s=self.within_s)

    def hang_up(self, *, after_s: float) -> None:
        """Close the connections that are at least `after_s` seconds old."""
        with self._lock:
            late = [each for each, since in self._open.items() if time.monotonic() >= since + after_s]
        for each in late:
            _hang_up(each)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of one connection, such as a client that has left."""
        del request
        error = sys.exception()
        logger.debug("http_failed", client=str(client_address), reason=log.reason(error) if error else "")


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    server_version = "brewctl"
    sys_version = ""
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer as GET does, without the body."""
        self._answer(with_body=False)

    def _refuse(self) -> None:
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"use GET or HEAD\n"), Allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815 - the library's names

    def _answer(self, *, with_body: bool) -> None:
        page = self.server.pages.get(urlsplit(self.path).path)
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND, f"no such page: there are {', '.join(self.server.pages)}")
            return
        try:
            answer = page()
        except Exception as error:  # the page failed, not the process
            logger.warning("http_page_failed", page=urlsplit(self.path).path, reason=log.reason(error))
            logger.debug("http_page_failed", exc_info=error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed: the log of the process says why")
        else:
            self._send(answer, with_body=with_body)

    def _send(self, answer: Answer, *, with_body: bool = True, **headers: str) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log nothing for a request: probes come every second."""
