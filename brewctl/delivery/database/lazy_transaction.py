"""A transaction that begins when the handler first uses its `tx`, so that slow work before holds no connection.

    call ── an HTTP request, seconds ──► tx.execute(…): a connection, BEGIN ──► the end of the event, COMMIT

A handler that never uses `tx` takes no connection.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from brewctl.delivery.database import BoundedConnection, Connection, Pool
from brewctl.delivery.database.lent_transaction import Lent, Returned, lent


class Lending:
    """A handler's `tx`, and the connection behind it once the handler has used it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._opening = threading.Lock()
        self._failed: BaseException | None = None
        self.connection: BoundedConnection | None = None  # with the transaction open
        self.whole, self.lent = contextlib.ExitStack(), contextlib.ExitStack()
        self._tx = _Unopened.__new__(_Unopened)
        object.__setattr__(self._tx, "_open", self._open)
        self.lent.callback(self._retire)

    @property
    def tx(self) -> Connection:
        """The connection to hand to the handler."""
        return self._tx

    def end(self) -> None:
        """Make `tx` unusable after the handler has returned, and leave its transaction, if any, open.

        Raises what `lent` raises, and the error of a transaction that could not begin, even if the handler caught it.
        """
        if self._failed:
            raise self._failed
        self.lent.close()

    def _open(self) -> None:
        with self._opening:  # a handler may have threads
            if type(self._tx) is not _Unopened:
                return
            try:
                connection = self.whole.enter_context(self._pool.connection())
                self.whole.enter_context(connection.transaction())
            except BaseException as error:
                self._failed = error
                raise
            self.connection = connection
            self.lent.enter_context(lent(connection, self._tx))

    def _retire(self) -> None:
        with self._opening:
            object.__setattr__(self._tx, "__class__", Returned)


@contextlib.contextmanager
def lent_lazily(pool: Pool) -> Iterator[Lending]:
    """Lend a transaction for the block, which calls the handler and then `end`; commit it after the block.

    It is rolled back where the block raises. Raises what `lent`, the pool and the commit raise.
    """
    lending = Lending(pool)
    with lending.whole, lending.lent:
        yield lending


class _Unopened(Lent):
    """A handler's `tx` before its first use: any attribute opens the transaction."""

    _open: Callable[[], None]

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return _Unopened
        object.__getattribute__(self, "_open")()
        return getattr(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        object.__getattribute__(self, "_open")()
        setattr(self, name, value)

    def __repr__(self) -> str:
        return "<tx of a handler that has not used it yet>"
