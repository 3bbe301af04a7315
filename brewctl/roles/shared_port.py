"""A port that several processes of one user listen on (SO_REUSEPORT)."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

from brewctl.errors import PortError


@contextlib.contextmanager
def held(host: str, port: int) -> Iterator[int]:
    """Reserve a port for sockets of this user while the block runs, also while no worker listens.

    Port 0 takes a free one. Raises PortError where another server has it, or this machine has no address of the host.
    """
    with contextlib.ExitStack() as held:
        bound = 0
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            # The same address may be found twice.
            for family, (address, _, *scope) in dict.fromkeys((family, place) for family, _, _, _, place in found):
                with _absence_allowed():
                    holder = _hold(family, (address, bound or port, *scope))
                    bound = held.enter_context(holder).getsockname()[1]
        except OSError:
            bound = 0
        if not bound:
            raise PortError(host, port)
        yield bound


@contextlib.contextmanager
def _absence_allowed() -> Iterator[None]:
    """Skip an address that this machine does not have, as gRPC does: `localhost` may be ::1 without IPv6."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise


def _hold(family: socket.AddressFamily, place: tuple[Any, ...]) -> socket.socket:
    # With SO_REUSEPORT another server's socket is no error. So the port is first bound without it, for a moment.
    with socket.create_server(place, family=family) as alone:
        place = alone.getsockname()
    holder = socket.socket(family)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections of the server before may still be in TIME_WAIT. SO_REUSEADDR is for this bind alone.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(place)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        holder.close()
        raise
    return holder
