"""Signals: the first one asks a process to drain, the second ends it at once."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType

from brewctl.errors import ExitCode

_INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stop_on_signals(last: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT, SIGTERM or SIGHUP sets; the second calls `last` and leaves at once.

    A SIGHUP that is ignored (`nohup`) stays so. Old handlers are restored on the way out. Main thread only.
    """
    stop = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    signals = _Signals(stop, last)
    with signals.read(numbers):
        before = {number: signal.signal(number, signals.on_signal) for number in numbers}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Signals:
    """Counts signals: the first sets `stop`, the second calls `last` and ends the process.

    The handler runs in the main thread, between any two steps of it, also while that thread holds the lock of the
    very event that it would set: to set it there could wait for itself. So the handler takes no lock, and a thread
    that reads the signals' numbers from a wake-up descriptor sets the event. The interpreter writes them as they
    arrive: the thread also ends a process whose main thread is in a call that no signal interrupts, such as the
    look-up of a host's name.
    """

    def __init__(self, stop: threading.Event, last: Callable[[], None]) -> None:
        self._stop = stop
        self._last = last
        self._handled = 0
        self._leaving = threading.Lock()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Counted, and not looked up in `stop`, which may have another cause: this signal would still be the first.
        self._handled += 1
        if self._handled > 1:
            self._leave()
        # For a signal that came while `interrupts_held` had taken the descriptor away. No number of a signal is 0.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def _leave(self) -> None:
        if self._leaving.acquire(blocking=False):
            try:
                self._last()
            finally:
                os._exit(ExitCode.INTERRUPTED)
        while True:  # another thread ends the process
            signal.pause()

    @contextlib.contextmanager
    def read(self, numbers: Collection[int]) -> Iterator[None]:
        """Read the signals that arrive while the block runs."""
        reader, self._writer = socket.socketpair()
        with reader, self._writer as writer:
            writer.setblocking(False)

            def read() -> None:
                came = 0
                while arrived := reader.recv(64):
                    came += sum(number in numbers for number in arrived)
                    if came or 0 in arrived:
                        self._stop.set()
                    if came > 1:
                        self._leave()

            thread = threading.Thread(target=read, name="signals", daemon=True)
            thread.start()
            # A full buffer loses nothing: two numbers in it are enough.
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(before)
                writer.shutdown(socket.SHUT_WR)
                thread.join()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Deliver interrupting signals after the block, so that what the block starts is written down first.

    For short steps, such as to start a process and write it down. Signals reach the main thread alone: elsewhere this
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = [number for number in _INTERRUPTING if callable(signal.getsignal(number))]
    awake = signal.set_wakeup_fd(-1)
    before = {number: signal.signal(number, lambda came, _frame: held.append(came)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(awake, warn_on_full_buffer=False)
        for came in held:
            signal.raise_signal(came)
