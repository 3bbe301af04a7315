"""The effect of faults on bytes: when they may be sent, how many may wait, where an answer is cut off.

This module has no threads and no selector: `relay` calls it.
"""

import functools
import math
import os
import random
import socket
import time
from collections import deque
from dataclasses import dataclass, field

_PIECE_BYTES = 64 * 1024
_ROOM_BYTES = 4 * _PIECE_BYTES
# On a slow line, a piece has the bytes of this time.
_PIECE_S = 0.05
# The first bytes of a client that speaks HTTP/2, and so of gRPC.
_PREFACE = b"PRI * HTTP/2.0"
_FRAME_HEADER_BYTES = 9
_DATA_FRAME = 0


@dataclass
class Cut:
    """Cuts off every `every`-th answer after `after_bytes` bytes, `left` times."""

    after_bytes: int
    every: int
    left: float
    answers: int = 0

    def __post_init__(self) -> None:
        if self.after_bytes < 0 or self.every < 1 or self.left < 1:
            raise ValueError("after_bytes must be at least 0, every and times at least 1")

    def takes_next(self) -> bool:
        """Count an answer; say whether it is to be cut off."""
        self.answers += 1
        return self.answers % self.every == 0


@dataclass(frozen=True)
class Faults:
    """All present faults of a proxy."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    chance: random.Random | None = None
    bytes_per_s: float = math.inf
    swallows: bool = False
    refuses: bool = False
    cut: Cut | None = None
    # All connections share the line: when each direction of it will be free again.
    _free_at: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.jitter_s < 0 or self.bytes_per_s <= 0:
            raise ValueError("latency and jitter must be at least 0 s, bandwidth more than 0 bytes/s")

    def due(self, way: int, size: int) -> float:
        """Return when a piece that was read now may be sent."""
        carried = self._free_at[way] = max(time.monotonic(), self._free_at[way]) + size / self.bytes_per_s
        jitter_s = self.chance.uniform(-self.jitter_s, self.jitter_s) if self.chance else 0.0
        return carried + max(0.0, self.latency_s + jitter_s)

    @functools.cached_property
    def piece_bytes(self) -> int:
        """How many bytes to read at once."""
        return max(1, int(min(_PIECE_BYTES, self.bytes_per_s * _PIECE_S)))

    @functools.cached_property
    def room_bytes(self) -> int:
        """How many bytes may wait in a flow. On a slow line few, so that senders are slowed down."""
        if self.bytes_per_s == math.inf:
            return _ROOM_BYTES
        return int(min(_ROOM_BYTES, self.bytes_per_s * (self.latency_s + self.jitter_s) + 2 * self.piece_bytes))


class ByteStream:
    """One direction of a connection: bytes from `source` that wait, in order, to be sent to `target`.

    Each piece has the earliest time to send it. An empty piece is the source's FIN, None its RST.
    """

    def __init__(self, source: socket.socket, target: socket.socket, *, way: int) -> None:
        self.source = source
        self.target = target
        self.way = way
        self.pieces: deque[tuple[float, bytes | None]] = deque()
        self.size = 0
        self.ended = False  # nothing more will be read
        self.done = False  # the target has got the FIN
        self.blocked = False  # the target takes nothing now
        self.watched = 0  # the events of `source` that the selector looks for
        self.wake_at = 0.0  # the newest timer for the first piece

    def put(self, due: float, piece: bytes | None) -> None:
        """Add a piece. After a FIN or an RST nothing more is read."""
        self.pieces.append((due, piece))
        self.size += len(piece or b"")
        self.ended = self.ended or not piece

    def send(self, now: float) -> bool:
        """Send due pieces until the target blocks. Returns whether a byte was sent. Raises OSError if it is broken."""
        sent_any = self.blocked = False
        while self.pieces and self.pieces[0][0] <= now:
            due, piece = self.pieces.popleft()
            if piece is None:
                raise ConnectionResetError
            if not piece:
                self.target.shutdown(socket.SHUT_WR)
                self.done = True
                break
            try:
                sent = self.target.send(piece)
            except BlockingIOError:
                sent = 0
            self.size -= sent
            sent_any = sent_any or sent > 0
            if sent < len(piece):
                self.pieces.appendleft((due, piece[sent:]))
                self.blocked = True
                break
        return sent_any

    def release(self) -> None:
        """Make all pieces due now."""
        self.pieces = deque((0.0, piece) for _, piece in self.pieces)


class ProxiedConnection:
    """A client's connection, its connection to upstream, and the flows between them."""

    def __init__(self, client: socket.socket) -> None:
        self.upstream = socket.socket()
        for end in (client, self.upstream):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = ByteStream(client, self.upstream, way=0)
        self.response = ByteStream(self.upstream, client, way=1)
        self.flows = (self.request, self.response)
        self.started = False  # connecting to upstream, or connected
        self.connected = False
        self.lost = False  # bytes were swallowed: it can only be reset
        self._opened = False  # the client has sent bytes
        self._asked = False  # upstream has got bytes, and has not answered since
        self._frames: _Frames | None = _Frames()
        self._cut: Cut | None = None
        self._allowance: int | None = None  # bytes until the present answer is cut off

    def look_connected(self) -> None:
        """Check the result of connecting, once upstream is writable. Raises OSError if it failed."""
        if not self.connected:
            if error := self.upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            # Without a listener, a local port may connect to itself: then both ends have the same address.
            if self.upstream.getsockname() == self.upstream.getpeername():
                raise ConnectionRefusedError
            self.connected = True

    def swallow(self) -> None:
        """Discard the waiting bytes."""
        for flow in self.flows:
            self.lost = self.lost or bool(flow.pieces)
            flow.pieces.clear()
            flow.size = 0

    def note_request(self, piece: bytes) -> None:
        """Detect HTTP/2 from the client's first bytes."""
        if not self._opened and not _PREFACE.startswith(piece[: len(_PREFACE)]):
            self._frames = None
        self._opened = True

    def note_sent(self) -> None:
        """Note that upstream has got bytes of a request."""
        self._asked = True

    def breaks_at(self, piece: bytes, cut: Cut | None) -> int | None:
        """Return how many bytes of this piece the client gets before the cut; None if there is no cut."""
        starts = self._answers_in(piece)
        if cut is not self._cut:
            self._cut, self._allowance = cut, None
        if cut is None:
            return None
        begin = 0
        for end in (*starts, len(piece)):
            if self._allowance is not None:
                if end - begin > self._allowance and cut.left:
                    cut.left -= 1
                    return begin + self._allowance
                self._allowance = max(0, self._allowance - (end - begin))
            begin = end
            if end < len(piece):
                self._allowance = cut.after_bytes if cut.takes_next() else None
        return None

    def _answers_in(self, piece: bytes) -> list[int]:
        if self._frames:
            return self._frames.messages_in(piece)
        starts = [0] if self._asked else []
        self._asked = False
        return starts


class _Frames:
    """Parses HTTP/2 frames. A DATA frame is an answer; settings, pings and window updates are not."""

    def __init__(self) -> None:
        self._header = b""
        self._left = 0  # bytes of the present frame

    def messages_in(self, piece: bytes) -> list[int]:
        """Return the positions of DATA frames in the next piece; 0 for a frame whose header began before it."""
        starts = []
        position = 0
        while position < len(piece):
            if self._left:
                step = min(self._left, len(piece) - position)
                self._left -= step
            else:
                step = min(_FRAME_HEADER_BYTES - len(self._header), len(piece) - position)
                self._header += piece[position : position + step]
                if len(self._header) == _FRAME_HEADER_BYTES:
                    self._left = int.from_bytes(self._header[:3])
                    if self._header[3] == _DATA_FRAME and self._left:
                        starts.append(position)
                    self._header = b""
            position += step
        return starts
