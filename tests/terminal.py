"""A terminal of a test's own: a program runs in a pseudo-terminal, and its screen can be read."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyte

from brewctl import lifecycle
from tests.conftest import BREWCTL


class Terminal:
    """A running command and its screen. Safe to read while the program writes."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, columns: int, lines: int) -> None:
        self.process = process
        self._master = master
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""
        self._reader = threading.Thread(target=self._read, name="terminal")
        self._reader.start()

    def _read(self) -> None:
        while True:
            ended = self.process.poll() is not None
            if select.select([self._master], [], [], 0.05)[0]:
                written = os.read(self._master, 65536)
                with self._lock:
                    self.raw += written
                    self._stream.feed(written)
            elif ended:
                return

    @property
    def lines(self) -> list[str]:
        """What the screen shows."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """What the screen shows, as one."""
        return "\n".join(self.lines)

    def press(self, *keys: str) -> None:
        """Press keys: characters, or the bytes that a special key sends."""
        for key in keys:
            os.write(self._master, key.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal another size, which the program is told of."""
        with self._lock:
            self._screen.resize(lines, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)  # it has no controlling terminal

    def wait_for(self, *parts: str, timeout_s: float = 90) -> None:
        """Wait until the screen shows all of it."""
        self.wait_until(f"{parts} on the screen", lambda: all(part in self.text for part in parts), timeout_s=timeout_s)

    def wait_until(self, what: str, condition: Callable[[], bool], *, timeout_s: float = 90) -> None:
        """Wait for a condition; the error has the screen."""
        try:
            lifecycle.wait_until(what, condition, timeout_s=timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}:\n{self.text}") from None

    def wait(self, timeout_s: float = 30) -> int:
        """Wait for the program's end and return its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join()
        return code


@contextlib.contextmanager
def opened(*arguments: str, env: dict[str, str], columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    """Run the installed binary in a terminal; it is killed where it still runs at the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    settings: Any = {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
    process = subprocess.Popen([BREWCTL, *arguments], env={**inherited, "TERM": "xterm-256color", **env}, **settings)
    before = termios.tcgetattr(slave)
    terminal = Terminal(process, master, columns, lines)
    try:
        yield terminal
        assert termios.tcgetattr(slave) == before, "the terminal is not as it was"
    finally:
        process.kill()
        terminal.wait()
        os.close(slave)
        os.close(master)
