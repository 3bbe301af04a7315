"""A TCP proxy with faults, between a role and a server, or between a client and a role.

    client ──connection──► 127.0.0.1:port ─ request flow ─►┐
                                         ◄─ response flow ─┴─connection──► upstream

One thread of each proxy serves all of its connections, and sleeps while nothing happens. Other threads
hand their calls to it. When a call returns, its fault is in force, also for connections that were opened
just before. Faults add up until `heal()`.
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
# The thread never blocks, so that only a bug lets a call wait so long.
_ANSWER_S = 10.0


class Proxy:
    """Forwards one local port to one upstream address, with faults that come and go while connections live.

    Without faults all bytes and FINs pass in order, in both directions. If one end is reset, or upstream
    can't be connected to, the other end is reset too. A slow reader slows its sender down: at most 256 KiB
    wait here for each direction of a connection.
    """

    def __init__(self, name: str, upstream: tuple[str, int], *, port: int = 0) -> None:
        """Listen on 127.0.0.1, on a free port where `port` is 0.

        Upstream need not run yet. Raises BrewError for a busy port, or an unknown host.
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
        """The address to which clients connect, HOST:PORT."""
        return f"{_HOST}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latency(self, seconds: float, jitter_s: float = 0.0, *, chance: random.Random) -> None:
        """Delay all bytes in both directions by `seconds` ± a random time up to `jitter_s`. Their order is kept."""
        self._put_on(latency_s=seconds, jitter_s=jitter_s, chance=chance)

    def bandwidth(self, bytes_per_s: int) -> None:
        """Limit the bandwidth in each direction, for all connections together."""
        self._put_on(bytes_per_s=bytes_per_s)

    def black_hole(self) -> None:
        """Accept connections and read, but forward nothing, not even bytes that are under way. Connections stay open.

        Swallowed bytes, FINs and RSTs are lost. `heal()` resets the connections that lost something, and connects
        the others to upstream.
        """
        self._put_on(swallows=True)

    def reset(self) -> None:
        """Reset both ends of every open connection now. Later connections work."""
        self._do(self._relay.break_all)

    def refuse(self) -> None:
        """Reset each new connection at once; open ones go on."""
        self._put_on(refuses=True)

    def cut_response(self, after_bytes: int = 0, *, every: int = 1, times: int | None = None) -> None:
        """Cut off every `every`-th answer in the middle with an RST to both ends, `times` times or until `heal()`.

        The client gets `after_bytes` bytes of the answer, and misses at least one; shorter answers pass. Upstream has
        got the whole request, and has acted on it. Answers are counted from this call on, over all connections. With
        HTTP/2, so gRPC, each DATA frame from upstream is an answer: a unary call's result, but no error, setting or
        ping. Else the first bytes from upstream after a request are one. `cuts` counts the answers that were cut off.
        """
        self._put_on(cut=Cut(after_bytes, every, math.inf if times is None else times))

    def heal(self) -> None:
        """Remove all faults. Delayed bytes arrive at once; `black_hole()` tells which are lost."""
        self._do(self._relay.heal)

    @property
    def cuts(self) -> int:
        """How many answers were cut off so far."""
        return self._relay.cuts

    def connections(self) -> int:
        """Return the number of open connections from clients."""
        return len(self._relay.connections)

    def losses(self) -> int:
        """Return the number of open connections that have lost bytes in a black hole."""
        return sum(connection.lost for connection in list(self._relay.connections))

    def held_bytes(self) -> int:
        """Return the bytes that were read but not sent on yet, over all connections and both directions."""
        return sum(flow.size for connection in list(self._relay.connections) for flow in connection.flows)

    def close(self) -> None:
        """Reset all connections and free the port. May be called twice; other calls raise BrewError afterwards."""
        with self._lock:
            self._closed = True
            self._ring()
        self._thread.join()
        self._waker.close()

    def _put_on(self, **faults: Any) -> None:
        self._do(lambda: self._relay.put_on(replace(self._relay.faults, **faults)))

    def _do(self, action: Callable[[], None]) -> None:
        """Let the proxy's thread call `action`, and wait until it has."""
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise BrewError(f"proxy {self.name} is closed")
            self._commands.append((action, done))
            self._ring()
        done.result(_ANSWER_S)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # the alarm is set already, or closed
            self._waker.send(b"!")

    def _run(self) -> None:
        try:
            while not self._closed:
                self._relay.turn()
            self._obey()  # answers calls that were made just before the end
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
