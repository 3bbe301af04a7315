"""Read single keys from a terminal, without Enter."""

import contextlib
import os
import select
import termios
import tty
from collections.abc import Iterator


class Keys:
    """Reads keys from a terminal in cbreak mode."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def forget(self) -> None:
        """Discard the keys that were pressed up to now."""
        termios.tcflush(self._terminal, termios.TCIFLUSH)

    def pressed(self) -> bool:
        """Say at once whether a key was pressed. Raises KeyboardInterrupt for q, or if the terminal is gone."""
        if not select.select([self._terminal], [], [], 0)[0]:
            return False
        if os.read(self._terminal, 64)[:1] in (b"", b"q", b"Q"):
            raise KeyboardInterrupt
        return True


@contextlib.contextmanager
def open_keys(terminal: int) -> Iterator[Keys]:
    """Read keys one by one, without echo; Ctrl-C stays a signal. Restores the terminal in any case."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield Keys(terminal)
    finally:
        # TCSANOW does not wait for pending output, which a terminal that has stopped showing it would never finish.
        termios.tcsetattr(terminal, termios.TCSANOW, before)
