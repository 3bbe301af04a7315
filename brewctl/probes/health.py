"""The pages /livez and /readyz of a role.

/livez: whether its threads move. It asks no server, because a restart of the process would not bring a server back.
/readyz: whether the role can do its work now, one line a check.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple

from brewctl.probes import heartbeat
from brewctl.probes.pages import TEXT, Answer


class Readiness(NamedTuple):
    """The result of a check, one line of the page."""

    ready: bool
    text: str


DRAINS = Readiness(ready=False, text="it drains: what is in hand is finished, and nothing new is taken")
Check = Callable[[], Iterable[Readiness]]


class Health:
    """The health of one role: it starts until `up` is called, and drains after `stop` is set."""

    def __init__(self, stop: threading.Event, *, fresh_s: float = 1.0) -> None:
        """Findings are kept for `fresh_s` seconds, so that many probes cost no more than one in that time."""
        self._stop = stop
        self._fresh_s = fresh_s
        # Called when the role is up, and with what its start waits for: to notify systemd, if that started the role.
        self.on_up: Callable[[], None] = _tell_nobody
        self.on_wait: Callable[[str], None] = _tell_nobody
        self._waits = ""
        self._checks: Sequence[Check] = ()
        self._is_up = False
        self._lock = threading.Lock()
        self._found: list[Readiness] = []
        self._found_at: float | None = None

    def up(self, *checks: Check) -> None:
        """Note that the role has started. /readyz shows these checks from now on; they must bound their waits."""
        self._checks, self._is_up = checks, True
        self.on_up()

    def waits(self, reason: str) -> None:
        """Note what the start waits for."""
        self._waits = f"; it waits: {reason}"
        self.on_wait(reason)

    def livez(self) -> Answer:
        """Return the page /livez: whether all threads move."""
        troubles = heartbeat.troubles()
        return answer("alive", "stuck", [Readiness(ready=False, text=trouble) for trouble in troubles] or _moving())

    def readyz(self) -> Answer:
        """Return the page /readyz: whether the role can do its work."""
        if self._stop.is_set():
            findings = [DRAINS]
        elif not self._is_up:
            findings = [Readiness(ready=False, text=f"starting{self._waits}")]
        else:
            findings = self._findings()
        return answer("ready", "not ready", findings)

    def _findings(self) -> list[Readiness]:
        with self._lock:  # concurrent probes run the checks once, and share the findings
            if self._found_at is None or time.monotonic() >= self._found_at + self._fresh_s:
                self._found = [finding for check in self._checks for finding in check()]
                self._found_at = time.monotonic()
            return self._found


def _tell_nobody(*_said: str) -> None:
    """Do nothing: the default of `on_up` and `on_wait`."""


def _moving() -> list[Readiness]:
    return [Readiness(ready=True, text=f"{name} moves") for name in heartbeat.names()]


def answer(well: str, ill: str, findings: Sequence[Readiness]) -> Answer:
    """Return a page: first `well` or `ill`, then one line a finding."""
    is_well = all(finding.ready for finding in findings)
    marks = {True: "ok", False: "NO"}
    lines = [well if is_well else ill, *(f"{marks[finding.ready]} {finding.text}" for finding in findings)]
    status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, TEXT, "".join(f"{line}\n" for line in lines).encode())
