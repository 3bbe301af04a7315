"""Single keys of a terminal, without Enter."""

import contextlib
import os
import select
import termios
import tty
from collections.abc import Iterator


class Keys:
    """Reads keys from a terminal whose lines are not edited."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def forget(self) -> None:
        """Forget the keys that were pressed up to now."""
        termios.tcflush(self._terminal, termios.TCIFLUSH)

    def pressed(self) -> bool:
        """Say at once whether a key was pressed. Raises KeyboardInterrupt for q, and where the terminal is gone."""
        if not select.select([self._terminal], [], [], 0)[0]:
            return False
        if os.read(self._terminal, 64)[:1] in (b"", b"q", b"Q"):
            raise KeyboardInterrupt
        return True


@contextlib.contextmanager
def open_keys(terminal: int) -> Iterator[Keys]:
    """Take keys one by one, unseen; Ctrl-C stays a signal. The terminal is as before on every way out."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield Keys(terminal)
    finally:
        # At once: a terminal that shows nothing any more would never be done with what is on its way there.
        termios.tcsetattr(terminal, termios.TCSANOW, before)
