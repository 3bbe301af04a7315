"""The work of a proxy's thread: accept, connect, and move bytes between sockets as the faults allow.

Nothing here is thread-safe. Only `turn()` blocks: it sleeps while nothing happens.
"""

import contextlib
import errno
import functools
import heapq
import itertools
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable

from brewctl import log
from brewctl.lab.network.wire import ByteStream, Faults, ProxiedConnection

logger = log.get(__name__)

BACKLOG = 256
_ACCEPT_AGAIN_S = 0.1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Relay:
    """Forwards connections to `listener` on to `upstream`. Calls `on_alarm` when `alarm` is readable."""

    def __init__(
        self, listener: socket.socket, upstream: tuple[str, int], *, alarm: socket.socket, on_alarm: Callable[[], None]
    ) -> None:
        self.faults = Faults()
        self.connections: set[ProxiedConnection] = set()
        self.cuts = 0
        self._listener = listener
        self._upstream = upstream
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._tickets = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._selector.register(alarm, selectors.EVENT_READ, lambda _events: on_alarm())
        self._listen()

    def turn(self) -> None:
        """Wait for the next events or timers, and handle them."""
        wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, events in self._selector.select(wait_s):
            key.data(events)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Reset all connections, and stop listening."""
        self.break_all()
        self._selector.close()
        self._listener.close()

    def accept(self) -> None:
        """Accept all waiting connections."""
        for _ in range(BACKLOG):
            try:
                client = self._listener.accept()[0]
            except BlockingIOError:
                return
            except OSError:
                # For example, no file descriptor is free. The listener would stay ready, and the thread never sleep.
                if self._listener in self._selector.get_map():
                    self._selector.unregister(self._listener)
                    self._at(time.monotonic() + _ACCEPT_AGAIN_S, self._listen)
                return
            try:
                connection = None if self.faults.refuses else ProxiedConnection(client)
            except OSError:
                connection = None
            if connection:
                self.connections.add(connection)
                self._guard(self._start, connection)
            else:
                _break(client)

    def put_on(self, faults: Faults) -> None:
        """Apply these faults from now on."""
        self.faults = faults
        for connection in list(self.connections):
            if faults.swallows:
                connection.swallow()
            self._guard(self._watch, connection)  # the faults change how much may wait

    def heal(self) -> None:
        """Remove all faults. Waiting bytes are sent; connections that lost bytes are reset."""
        self.faults = Faults()
        for connection in list(self.connections):
            self._guard(self._resume, connection)

    def break_all(self) -> None:
        """Reset both ends of each connection."""
        for connection in list(self.connections):
            self._drop(connection, broken=True)

    def _listen(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, lambda _events: self.accept())

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._tickets), act))

    def _guard(self, act: Callable[..., None], connection: ProxiedConnection, *more: object) -> None:
        """Call `act` for a connection. An error ends only that connection."""
        if connection not in self.connections:
            return
        try:
            act(connection, *more)
            if connection.request.done and connection.response.done:
                self._drop(connection, broken=False)
            else:
                self._watch(connection)
        except OSError:
            self._drop(connection, broken=True)
        except Exception:
            logger.exception("proxy_failed")
            self._drop(connection, broken=True)

    def _start(self, connection: ProxiedConnection) -> None:
        if self.faults.swallows:
            return
        connection.started = True
        error = connection.upstream.connect_ex(self._upstream)
        if error not in {0, errno.EINPROGRESS}:
            raise OSError(error, os.strerror(error))
        connection.request.blocked = True

    def _resume(self, connection: ProxiedConnection) -> None:
        if connection.lost:
            raise ConnectionResetError
        if not connection.started:
            self._start(connection)
        for flow in connection.flows:
            flow.release()
            self._send(connection, flow)

    def _on_events(self, connection: ProxiedConnection, reads: ByteStream, writes: ByteStream, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            connection.look_connected()
            self._send(connection, writes)
        if events & selectors.EVENT_READ:
            self._read(connection, reads)

    def _read(self, connection: ProxiedConnection, flow: ByteStream) -> None:
        faults = self.faults
        room = faults.room_bytes - flow.size
        if flow.ended or room <= 0:
            return
        piece: bytes | None
        try:
            piece = flow.source.recv(min(room, faults.piece_bytes))
        except BlockingIOError:
            return
        except OSError:
            piece = None
        if faults.swallows:
            connection.lost, flow.ended = True, not piece
            if flow.ended and not connection.started:
                raise ConnectionResetError  # upstream never got the connection
            return
        if piece and flow is connection.request:
            connection.note_request(piece)
        elif piece and (end := connection.breaks_at(piece, faults.cut)) is not None:
            self.cuts += 1
            if end:
                flow.put(faults.due(flow.way, end), piece[:end])
            piece = None
        flow.put(faults.due(flow.way, len(piece or b"")), piece)
        self._send(connection, flow)

    def _send(self, connection: ProxiedConnection, flow: ByteStream) -> None:
        if not connection.connected:
            return
        if flow.send(time.monotonic()) and flow is connection.request:
            connection.note_sent()
        if flow.pieces and not flow.blocked and flow.wake_at != (due := flow.pieces[0][0]):
            flow.wake_at = due
            self._at(due, functools.partial(self._guard, self._send, connection, flow))

    def _watch(self, connection: ProxiedConnection) -> None:
        """Watch only events that can be handled now: others would keep the thread from sleeping."""
        room = self.faults.room_bytes
        for reads, writes in (connection.flows, connection.flows[::-1]):
            events = 0
            if connection.started or reads is connection.request:
                events |= 0 if reads.ended or reads.size >= room else selectors.EVENT_READ
                events |= selectors.EVENT_WRITE if writes.blocked else 0
            if events == reads.watched:
                continue
            self._forget(reads)
            if events:
                act = functools.partial(self._guard, self._on_events, connection, reads, writes)
                self._selector.register(reads.source, events, act)
                reads.watched = events

    def _forget(self, flow: ByteStream) -> None:
        if flow.watched:
            flow.watched = 0
            self._selector.unregister(flow.source)

    def _drop(self, connection: ProxiedConnection, *, broken: bool) -> None:
        self.connections.discard(connection)
        for flow in connection.flows:
            self._forget(flow)
            if broken:
                _break(flow.source)
            else:
                flow.source.close()


def _break(end: socket.socket) -> None:
    """Close a socket with an RST instead of a FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.close()
