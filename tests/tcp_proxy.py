"""A TCP proxy on this machine, that stops forwarding or hangs up when it is told to."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Forwards connections to a server, until told otherwise."""

    def __init__(self, host: str, port: int, at: int = 0) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", at))
        self.port = int(self._listener.getsockname()[1])
        # The server's answers are read and thrown away.
        self.swallowing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:  # it is away: so is this, for its clients
                client.close()
                continue
            self._sockets += [client, server]
            for source, sink, answers in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pump, args=(source, sink, answers))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (answers and self.swallowing.is_set()):
                    sink.sendall(data)
        _end(source, sink)

    def move(self, host: str, port: int) -> None:
        """Lead to another server from now on, and end every connection."""
        self._server = (host, port)
        self.hang_up()

    def hang_up(self) -> None:
        """End every connection; new ones are taken."""
        _end(*self._sockets)

    def close(self) -> None:
        """End, and leave no thread behind."""
        _end(self._listener, *self._sockets)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._sockets):
            each.close()


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(host: str, port: int, at: int = 0) -> Iterator[Proxy]:
    """Forward to a server; `at`: from this port, default: any."""
    proxy = Proxy(host, port, at)
    try:
        yield proxy
    finally:
        proxy.close()
