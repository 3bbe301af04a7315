"""A gRPC client that speaks HTTP/2 by hand, for what no well-behaved one does."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_STREAM = 1


class Frame(NamedTuple):
    """What came from the server."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class ByHand:
    """One connection with one call. What is not told here it does not do: no ping is answered without `attend`."""

    def __init__(self, address: str, *, window: int = 65535) -> None:
        """Connect; the server may send `window` bytes of messages before it is told that they were read."""
        host, _, port = address.rpartition(":")
        self._address = address
        self.socket = socket.create_connection((host, int(port)))
        self.frames: list[Frame] = []
        self._attending = threading.Thread(target=self._attend, daemon=True)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(SETTINGS, 0, 0, settings)

    def call(self, method: str, *, data: bytes = b"", complete: bool = False) -> None:
        """Begin a call of /SERVICE/METHOD: its headers, then `data`; `complete` says that no more will come."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": self._address,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        self._send(HEADERS, _END_HEADERS, _STREAM, block)
        if data or complete:
            self._send(DATA, _END_STREAM if complete else 0, _STREAM, data)

    def attend(self) -> None:
        """Answer pings and settings from now on, as a client does that is well, and keep what comes."""
        self._attending.start()

    def grant(self, window: int) -> None:
        """Let the server send so many bytes more of the call's messages."""
        self._send(WINDOW_UPDATE, 0, _STREAM, struct.pack(">I", window))

    def messages(self) -> list[bytes]:
        """The messages of the call that have come so far."""
        data, found = b"".join(frame.payload for frame in list(self.frames) if frame.kind == DATA), []
        while data:
            (length,) = struct.unpack(">I", data[1:5])
            found.append(data[5 : 5 + length])
            data = data[5 + length :]
        return found

    def came(self, kind: int) -> bool:
        """Whether a frame of this kind has come."""
        return any(frame.kind == kind for frame in list(self.frames))

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self._attending.ident:
            self._attending.join(20)
        self.socket.close()

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        header = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self.socket.sendall(header + payload)

    def _attend(self) -> None:
        with contextlib.suppress(OSError):
            while header := self._read(9):
                (length,) = struct.unpack(">I", b"\0" + header[:3])
                kind, flags, stream = struct.unpack(">BBI", header[3:])
                frame = Frame(kind, flags, stream, self._read(length))
                if kind in {PING, SETTINGS} and not flags & _ACK:
                    self._send(kind, _ACK, 0, frame.payload if kind == PING else b"")
                self.frames.append(frame)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length and (more := self.socket.recv(length - len(data))):
            data += more
        return data


def message(serialized: bytes) -> bytes:
    """Return a message as it travels in a call."""
    return struct.pack(">BI", 0, len(serialized)) + serialized


@contextlib.contextmanager
def by_hand(address: str, *, window: int = 65535) -> Iterator[ByHand]:
    """Connect, and hang up at the end."""
    client = ByHand(address, window=window)
    try:
        yield client
    finally:
        client.close()
