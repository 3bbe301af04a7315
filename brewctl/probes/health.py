"""What /livez and /readyz of a role say.

/livez: do its threads move? It asks no server: to start a process again brings no server back.
/readyz: can it do its work now? One line a check, in plain words.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple

from brewctl.probes import heartbeat
from brewctl.probes.pages import TEXT, Answer


class Finding(NamedTuple):
    """What a check found."""

    ready: bool
    text: str


DRAINS = Finding(ready=False, text="it drains: what is in hand is finished, and nothing new is taken")
Check = Callable[[], Iterable[Finding]]


class Health:
    """Of one role. Before `up` it starts; once `stop` is set it drains."""

    def __init__(self, stop: threading.Event, *, fresh_s: float = 1.0) -> None:
        """Findings are `fresh_s` seconds old at most: many probes cost no more than one in that time."""
        self._stop = stop
        self._fresh_s = fresh_s
        # Told that the role is up, and what its start waits for: systemd, where that has started it.
        self.on_up: Callable[[], None] = _tell_nobody
        self.on_wait: Callable[[str], None] = _tell_nobody
        self._waits = ""
        self._checks: Sequence[Check] = ()
        self._is_up = False
        self._lock = threading.Lock()
        self._found: list[Finding] = []
        self._found_at: float | None = None

    def up(self, *checks: Check) -> None:
        """Say that the role works, and what tells whether it goes on to. Checks bound their waits."""
        self._checks, self._is_up = checks, True
        self.on_up()

    def waits(self, reason: str) -> None:
        """Say what the start waits for."""
        self._waits = f"; it waits: {reason}"
        self.on_wait(reason)

    def livez(self) -> Answer:
        """Say whether all threads move."""
        troubles = heartbeat.troubles()
        return answer("alive", "stuck", [Finding(ready=False, text=trouble) for trouble in troubles] or _moving())

    def readyz(self) -> Answer:
        """Say whether the role can do its work."""
        if self._stop.is_set():
            findings = [DRAINS]
        elif not self._is_up:
            findings = [Finding(ready=False, text=f"starting{self._waits}")]
        else:
            findings = self._findings()
        return answer("ready", "not ready", findings)

    def _findings(self) -> list[Finding]:
        with self._lock:  # of several questions at a time one is asked, and all get its answer
            if self._found_at is None or time.monotonic() >= self._found_at + self._fresh_s:
                self._found = [finding for check in self._checks for finding in check()]
                self._found_at = time.monotonic()
            return self._found


def _tell_nobody(*_said: str) -> None:
    """Do nothing: nobody wants to know."""


def _moving() -> list[Finding]:
    return [Finding(ready=True, text=f"{name} moves") for name in heartbeat.names()]


def answer(well: str, ill: str, findings: Sequence[Finding]) -> Answer:
    """Return the page: first the verdict, then a line a finding."""
    is_well = all(finding.ready for finding in findings)
    marks = {True: "ok", False: "NO"}
    lines = [well if is_well else ill, *(f"{marks[finding.ready]} {finding.text}" for finding in findings)]
    status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, TEXT, "".join(f"{line}\n" for line in lines).encode())
