"""A TCP proxy with faults, to stand between a role and a server, or between a client and a role.

    client ──connection──► 127.0.0.1:port ─ request flow ─►┐
                                         ◄─ response flow ─┴─connection──► upstream

One thread a proxy runs all of its connections, and sleeps while nothing happens. Control calls are
handed to it: they may come from any thread, and when they return, what they ask for is in force, also
for who connected just before. Faults add up until `heal()`.
"""

import contextlib
import math
import random
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

from brewctl.errors import BrewError
from brewctl.lab.network.relay import BACKLOG, Relay
from brewctl.lab.network.wire import Cut

_HOST = "127.0.0.1"
# The thread never blocks: only a bug makes a call wait so long.
_ANSWER_S = 10.0


class Proxy:
    """Forwards one local port to one upstream address, with faults that come and go while connections live.

    Without faults every byte and every FIN passes, in order, each way for itself; where one end breaks
    (RST), or upstream can't be connected to, the other is broken too. A slow reader slows its sender
    down: at most 256 KiB wait here, each way and connection.
    """

    def __init__(self, name: str, upstream: tuple[str, int], *, port: int = 0) -> None:
        """Listen on 127.0.0.1, on a free port where `port` is 0.

        Upstream need not be there. Raises BrewError for a busy port, or an unknown host.
        """
        self.name = name
        try:
            address = (socket.gethostbyname(upstream[0]), upstream[1])
        except OSError as error:
            raise BrewError(f"proxy {name}: host {upstream[0]} is not known") from error
        try:
            listener = socket.create_server((_HOST, port), backlog=BACKLOG)
        except OSError as error:
            raise BrewError(f"proxy {name}: port {port} can't be listened on", hint="is it taken?") from error
        listener.setblocking(False)
        self.port: int = listener.getsockname()[1]
        self._alarm, self._waker = socket.socketpair()
        self._alarm.setblocking(False)
        self._waker.setblocking(False)
        self._relay = Relay(listener, address, alarm=self._alarm, on_alarm=self._obey)
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"proxy-{name}")
        self._thread.start()

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"{_HOST}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latency(self, seconds: float, jitter_s: float = 0.0, *, chance: random.Random) -> None:
        """Delay each piece, each way, by `seconds` more or less up to `jitter_s` that `chance` draws. Order is kept."""
        self._put_on(latency_s=seconds, jitter_s=jitter_s, chance=chance)

    def bandwidth(self, bytes_per_s: int) -> None:
        """Carry at most so much each way, for all connections together, as one slow line does."""
        self._put_on(bytes_per_s=bytes_per_s)

    def black_hole(self) -> None:
        """Accept and read, forward and answer nothing, also of what is under way now; connections stay open.

        What is swallowed is lost, an end's FIN or RST too: `heal()` breaks the connections that lost something,
        and connects new ones that did not to upstream.
        """
        self._put_on(swallows=True)

    def reset(self) -> None:
        """Break every open connection, both ends, now (RST). Later ones work."""
        self._do(self._relay.break_all)

    def refuse(self) -> None:
        """Break each new connection at once (RST); open ones go on."""
        self._put_on(refuses=True)

    def cut_response(self, after_bytes: int = 0, *, every: int = 1, times: int | None = None) -> None:
        """Break off each `every`-th answer, `times` times, or until `heal()`: both ends get an RST in its midst.

        The client gets `after_bytes` bytes of such an answer and misses at least one; a shorter answer passes.
        Upstream has got all of the request, and has acted on it. Answers are counted from this call on, over all
        connections: over HTTP/2, so gRPC, each DATA frame that upstream sends (a unary call's result, never an
        error, a setting or a ping), else the first bytes from upstream after some went there. `cuts` counts the hits.
        """
        self._put_on(cut=Cut(after_bytes, every, math.inf if times is None else times))

    def heal(self) -> None:
        """Take all faults away. What is still under way arrives at once; see `black_hole()` for what is lost."""
        self._do(self._relay.heal)

    @property
    def cuts(self) -> int:
        """How many answers were broken off so far."""
        return self._relay.cuts

    def connections(self) -> int:
        """How many connections are open: of clients, those to upstream not counted."""
        return len(self._relay.connections)

    def losses(self) -> int:
        """How many open connections have lost something in a black hole."""
        return sum(connection.lost for connection in list(self._relay.connections))

    def held_bytes(self) -> int:
        """How many bytes have been read and not sent on yet, both ways, over all connections."""
        return sum(flow.size for connection in list(self._relay.connections) for flow in connection.flows)

    def close(self) -> None:
        """Break all connections and free the port. Twice is harmless; any other call after it is a BrewError."""
        with self._lock:
            self._closed = True
            self._ring()
        self._thread.join()
        self._waker.close()

    def _put_on(self, **faults: Any) -> None:
        self._do(lambda: self._relay.put_on(replace(self._relay.faults, **faults)))

    def _do(self, action: Callable[[], None]) -> None:
        """Have the thread do it, and wait until it has."""
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise BrewError(f"proxy {self.name} is closed")
            self._commands.append((action, done))
            self._ring()
        done.result(_ANSWER_S)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it rings already, or is closed
            self._waker.send(b"!")

    def _run(self) -> None:
        try:
            while not self._closed:
                self._relay.turn()
            self._obey()  # a call made just before the end still gets its answer
        finally:
            self._relay.close()
            self._alarm.close()

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._alarm.recv(1024)
        self._relay.accept()  # the fault also applies to connections made before the call
        while self._commands:
            action, done = self._commands.popleft()
            try:
                action()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                done.set_exception(error)
            else:
                done.set_result(None)
