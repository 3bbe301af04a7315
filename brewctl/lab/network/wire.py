"""What a faulty line does to bytes: when a piece may go, how many fit, where an answer breaks off.

No thread and no selector here: `relay` drives these.
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
# A slow line is read in pieces of so much of its time.
_PIECE_S = 0.05
# The client's first bytes where it speaks HTTP/2, so also gRPC.
_PREFACE = b"PRI * HTTP/2.0"
_FRAME_HEADER_BYTES = 9
_DATA_FRAME = 0


@dataclass
class Cut:
    """Breaks off each `every`-th answer after `after_bytes` bytes of it, `left` times."""

    after_bytes: int
    every: int
    left: float
    answers: int = 0

    def __post_init__(self) -> None:
        if self.after_bytes < 0 or self.every < 1 or self.left < 1:
            raise ValueError("after_bytes must be at least 0, every and times at least 1")

    def takes_next(self) -> bool:
        """Count an answer; say whether it is one to break off."""
        self.answers += 1
        return self.answers % self.every == 0


@dataclass(frozen=True)
class Faults:
    """All that is wrong with a line at a time."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    chance: random.Random | None = None
    bytes_per_s: float = math.inf
    swallows: bool = False
    refuses: bool = False
    cut: Cut | None = None
    # The line is one for all connections: when each way of it has carried what it took.
    _free_at: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.jitter_s < 0 or self.bytes_per_s <= 0:
            raise ValueError("latency and jitter must be at least 0 s, bandwidth more than 0 bytes/s")

    def due(self, way: int, size: int) -> float:
        """Say when a piece that is read now may go on."""
        carried = self._free_at[way] = max(time.monotonic(), self._free_at[way]) + size / self.bytes_per_s
        jitter_s = self.chance.uniform(-self.jitter_s, self.jitter_s) if self.chance else 0.0
        return carried + max(0.0, self.latency_s + jitter_s)

    @functools.cached_property
    def piece_bytes(self) -> int:
        """How much to read at once."""
        return max(1, int(min(_PIECE_BYTES, self.bytes_per_s * _PIECE_S)))

    @functools.cached_property
    def room_bytes(self) -> int:
        """What may wait in a flow: on a slow line little more than what is under way, so that senders feel it."""
        if self.bytes_per_s == math.inf:
            return _ROOM_BYTES
        return int(min(_ROOM_BYTES, self.bytes_per_s * (self.latency_s + self.jitter_s) + 2 * self.piece_bytes))


class ByteStream:
    """One direction of a connection: what came from `source` and waits, in order, to be sent to `target`.

    Each piece has the time before which it may not go. An empty one is the source's FIN, None its RST.
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
        """Add a piece. After a FIN or an RST nothing more is to be read."""
        self.pieces.append((due, piece))
        self.size += len(piece or b"")
        self.ended = self.ended or not piece

    def send(self, now: float) -> bool:
        """Send what is due, as far as it fits; say whether a byte went. Raises OSError where the connection broke."""
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
        """Let everything go at once."""
        self.pieces = deque((0.0, piece) for _, piece in self.pieces)


class ProxiedConnection:
    """A client's connection, the one to upstream that belongs to it, and the flows between the two."""

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
        self.lost = False  # bytes of it were swallowed: it can only be broken
        self._opened = False  # the client has said something
        self._asked = False  # upstream has got bytes that it has not answered yet
        self._frames: _Frames | None = _Frames()
        self._cut: Cut | None = None
        self._allowance: int | None = None  # bytes until the answer at hand breaks off

    def look_connected(self) -> None:
        """Learn, once upstream can be written to, how connecting ended. Raises OSError where it failed."""
        if not self.connected:
            if error := self.upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            # Without a listener, a local port sometimes connects to itself: both ends are the same.
            if self.upstream.getsockname() == self.upstream.getpeername():
                raise ConnectionRefusedError
            self.connected = True

    def swallow(self) -> None:
        """Lose what is under way."""
        for flow in self.flows:
            self.lost = self.lost or bool(flow.pieces)
            flow.pieces.clear()
            flow.size = 0

    def note_request(self, piece: bytes) -> None:
        """Tell the protocol from the client's first bytes."""
        if not self._opened and not _PREFACE.startswith(piece[: len(_PREFACE)]):
            self._frames = None
        self._opened = True

    def note_sent(self) -> None:
        """Upstream has got bytes of a request."""
        self._asked = True

    def breaks_at(self, piece: bytes, cut: Cut | None) -> int | None:
        """Say how much of this piece of a response the client still gets; None where it gets all."""
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
    """Follows HTTP/2 frames. Settings, pings and windows come at any time; a DATA frame is a message, so an answer."""

    def __init__(self) -> None:
        self._header = b""
        self._left = 0  # bytes of the frame at hand

    def messages_in(self, piece: bytes) -> list[int]:
        """Return where DATA frames begin in the stream's next piece; 0 for one whose header began before it."""
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
