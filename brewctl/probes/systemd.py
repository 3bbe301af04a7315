"""Notifies systemd about a process that it started with Type=notify: sd_notify(3), without a library.

A message is one datagram to the socket that NOTIFY_SOCKET names. Imported only if that is set. The variables are
removed from the environment, so that child processes do not notify systemd in this one's place.
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
# The timeout of a message, so that a manager that does not read can't delay a start or a stop.
_SEND_S = 1.0
_STATUS_CHARACTERS = 500


class Manager:
    """The systemd that started this process. For any thread."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Read the variables of sd_notify and sd_watchdog_enabled, and remove them from `environ`."""
        named = environ.pop(SOCKET, "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        # @ stands for the null byte with which an abstract address begins.
        self._address = "\0" + named[1:] if named.startswith("@") else named
        self._named = named
        is_ours = pid in {"", str(os.getpid())}
        # systemd kills a process that does not notify it for so long; 0 without a watchdog.
        self.watchdog_s = int(usec) / 1e6 if is_ours and usec.isdecimal() else 0.0
        self._lock = threading.Lock()
        self._has_failed = False
        self._stops = False

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1. The first failure is logged as a warning, later ones are ignored."""
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
                hint = "systemd does not learn this process's state: see Type=notify and NotifyAccess= of its unit"
                logger.warning("notify_failed", socket=self._named, reason=reason, hint=hint)

    def ready(self) -> None:
        """Notify systemd that the process has started."""
        self.tell("READY=1", _status("ready"))

    def waits(self, reason: str) -> None:
        """Notify systemd of what the start waits for."""
        self.tell(_status(f"waits: {reason}"))

    def stops(self) -> None:
        """Notify systemd, once, that the process drains."""
        with self._lock:
            is_first, self._stops = not self._stops, True
        if is_first:
            self.tell("STOPPING=1", _status("drains: what is in hand is finished"))


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_STATUS_CHARACTERS]}"


@contextlib.contextmanager
def told(stop: threading.Event, livez: Page, environ: MutableMapping[str, str] = os.environ) -> Iterator[Manager]:
    """Notify systemd of the stop, and of the watchdog as long as the page /livez is well.

    The caller calls `ready` on the yielded manager.
    """
    manager = Manager(environ)
    over = threading.Event()

    def tell_of_stop() -> None:
        stop.wait()
        if not over.is_set():
            manager.stops()

    def watch() -> None:
        is_stuck = False
        # Twice in the watchdog's time, as sd_watchdog_enabled(3) recommends.
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
