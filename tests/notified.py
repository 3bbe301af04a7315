"""A systemd that listens: the socket that NOTIFY_SOCKET names, and what came there from which process."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CREDENTIALS = struct.Struct("iII")


@dataclass
class Listener:
    """A datagram socket; messages in their order, each with the pid of its sender."""

    socket: socket.socket
    name: str
    came: list[tuple[int, list[str]]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return [line for _, lines in self.came for line in lines]

    def wait_for(self, beginning: str, *, timeout_s: float = 60, times: int = 1) -> str:
        """Read until as many lines begin so, and return the last of them."""
        deadline = time.monotonic() + timeout_s
        while len(found := [line for line in self.lines if line.startswith(beginning)]) < times:
            assert self.read(deadline - time.monotonic()), f"no {beginning} within {timeout_s:g} s, only {self.lines}"
        return found[-1]

    def read(self, within_s: float) -> bool:
        """Read one message, if one comes."""
        self.socket.settimeout(max(0.001, within_s))
        try:
            data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except TimeoutError:
            return False
        ((_, _, credentials),) = ancillary
        self.came.append((_CREDENTIALS.unpack(credentials)[0], data.decode().splitlines()))
        return True

    def read_all(self) -> None:
        """Read what has come."""
        while self.read(0):
            pass


@contextlib.contextmanager
def listening(address: Path | str) -> Iterator[Listener]:
    """Listen at a path, or at an abstract address that begins with @."""
    name = str(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind("\0" + name[1:] if name.startswith("@") else name)
        yield Listener(receiver, name)
