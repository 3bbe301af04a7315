"""What systemd is told of a process that it has started with Type=notify: sd_notify(3), without a library.

A message is one datagram to the socket that NOTIFY_SOCKET names. Imported only where that is set. The variables are
taken out of the environment, so that processes started by this one tell nothing in its place.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, MutableMapping
from http import HTTPStatus

from brewctl import log
from brewctl.probes.pages import Page

logger = log.get(__name__)

SOCKET = "NOTIFY_SOCKET"
# A message to a manager that reads nothing any more is given up: it must not hold up a start or a stop.
_SEND_S = 1.0
_STATUS_CHARACTERS = 500


class Manager:
    """The systemd that has started this process. Safe from any thread."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take the variables of sd_notify and sd_watchdog_enabled out of `environ`."""
        named = environ.pop(SOCKET, "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        # @ stands for the null byte with which an abstract address begins.
        self._address = "\0" + named[1:] if named.startswith("@") else named
        self._named = named
        is_ours = pid in {"", str(os.getpid())}
        # A process that says nothing for this long is killed.
        self.watchdog_s = int(usec) / 1e6 if is_ours and usec.isdecimal() else 0.0
        self._lock = threading.Lock()
        self._has_failed = False
        self._stops = False

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1. Failing is one warning: the process goes on."""
        try:
            if not self._named.startswith(("/", "@")):
                raise ValueError("neither a path nor an abstract address")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_S)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except (OSError, ValueError) as error:
            with self._lock:
                is_first, self._has_failed = not self._has_failed, True
            if is_first:
                reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
                hint = "systemd is not told how this process is; see Type=notify and NotifyAccess= of its unit"
                logger.warning("notify_failed", socket=self._named, reason=reason, hint=hint)

    def ready(self) -> None:
        """Say that the process has started."""
        self.tell("READY=1", _status("ready"))

    def waits(self, reason: str) -> None:
        """Say what a start waits for."""
        self.tell(_status(f"waits: {reason}"))

    def stops(self) -> None:
        """Say, once, that the process drains."""
        with self._lock:
            is_first, self._stops = not self._stops, True
        if is_first:
            self.tell("STOPPING=1", _status("drains: what is in hand is finished"))


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_STATUS_CHARACTERS]}"


@contextlib.contextmanager
def told(stop: threading.Event, livez: Page, environ: MutableMapping[str, str] = os.environ) -> Iterator[Manager]:
    """Tell systemd of the stop, and that the process is alive as long as its page /livez says so.

    The caller says when it is ready.
    """
    manager = Manager(environ)
    over = threading.Event()

    def tell_of_stop() -> None:
        stop.wait()
        if not over.is_set():
            manager.stops()

    def watch() -> None:
        is_stuck = False
        # Half of the time, as sd_watchdog_enabled(3) recommends.
        while not over.wait(manager.watchdog_s / 2):
            page = livez()
            if page.status == HTTPStatus.OK:
                is_stuck = False
                manager.tell("WATCHDOG=1")
            elif not is_stuck:
                is_stuck = True
                trouble = "; ".join(page.body.decode(errors="replace").splitlines())
                logger.error("watchdog_not_told", reason=trouble, hint="systemd ends this process, and starts it again")
                manager.tell(_status(trouble))

    threading.Thread(target=tell_of_stop, name="systemd-stop", daemon=True).start()
    if manager.watchdog_s:
        threading.Thread(target=watch, name="systemd-watchdog", daemon=True).start()
    try:
        yield manager
    finally:
        over.set()
        manager.stops()
