"""The transaction that a handler is lent: it may write, and neither end it nor keep it."""

import contextlib
from collections.abc import Iterator

from brewctl.delivery.database import BoundedConnection, Connection


@contextlib.contextmanager
def lent(connection: BoundedConnection) -> Iterator[Connection]:
    """Lend the transaction that is open on a connection to a handler, for as long as the block runs."""
    yield connection
