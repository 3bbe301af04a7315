"""Ask one server in a thread of its own when a scrape comes, so that a silent server does not block the scrape."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from brewctl import log
from brewctl.errors import BrewError, UnreachableError
from brewctl.exporter.families import LOOK_SECONDS, UP, Sample
from brewctl.exporter.questions import Question
from brewctl.probes import heartbeat

logger = log.get(__name__)

# A scrape that comes sooner after a look gets that look's answers.
FRESH_S = 1.0
# Longer than all bounds of a look together: a look that has not ended by then hangs.
STUCK_S = 60.0
_SLICE_S = 0.2


@dataclass(frozen=True)
class Look:
    """The result of a look at a server. `away`: why the server gave no answer."""

    samples: Sequence[Sample] = ()
    took_s: float = 0.0
    away: BrewError | None = None
    failed: Sequence[str] = ()  # why single questions failed although the server answers


class Looker:
    """Asks one server its questions, over a connection that stays open between looks."""

    def __init__(self, server: str, opened: Callable[[], AbstractContextManager[Sequence[Question]]]) -> None:
        """Make a looker. `opened` connects to the server and yields its questions; raises BrewError if that fails."""
        self.server = server
        self._opened = opened
        self._changed = threading.Condition()
        self._look = _unanswered(server)
        self._looked_at = -FRESH_S  # when the last look began
        self._began: float | None = None  # when the running look began; None: no look runs
        self._number = 0  # how many looks have ended
        self._wanted = False

    def run(self, stop: threading.Event) -> None:
        """Look each time a scrape asks, until `stop` is set."""
        with heartbeat.Loop(f"metrics-{self.server}", within_s=STUCK_S) as loop:
            self._run(stop, loop)

    def _run(self, stop: threading.Event, loop: heartbeat.Loop) -> None:
        while self._awaited(stop, loop):
            try:
                with self._opened() as questions:
                    self._ended(questions)
                    while self._awaited(stop, loop):
                        self._ended(questions)
            except Exception as error:  # noqa: BLE001 - reported to the scrapes; the looker must go on
                unknown = BrewError(f"{self.server}: {type(error).__name__} {log.reason(error)}")
                self._finish(Look(away=error if isinstance(error, BrewError) else unknown))

    def ask(self) -> int:
        """Request a look, unless one runs or has just ended; return the number of the look to wait for."""
        with self._changed:
            if self._began is not None or self._wanted:
                return self._number + 1
            if time.monotonic() < self._looked_at + FRESH_S:
                return self._number
            self._wanted = True
            self._changed.notify_all()
            return self._number + 1

    def answer(self, number: int, *, until: float) -> Look:
        """Wait for the look of this number, until the monotonic time `until`. A look that is late counts as away."""
        with self._changed:
            if self._changed.wait_for(lambda: self._number >= number, max(0.0, until - time.monotonic())):
                return self._look
        return _unanswered(self.server)

    @property
    def last(self) -> Look:
        """The last look that ended."""
        return self._look

    def _awaited(self, stop: threading.Event, loop: heartbeat.Loop) -> bool:
        """Wait until a look is requested, and begin it. Returns False once `stop` is set."""
        loop.rest()
        with self._changed:
            while not self._changed.wait_for(lambda: self._wanted, _SLICE_S):
                if stop.is_set():
                    return False
            if stop.is_set():
                return False
            self._wanted = False
            self._began = self._looked_at = time.monotonic()
        loop.beat()
        return True

    def _ended(self, questions: Sequence[Question]) -> None:
        samples = [sample for question in questions for sample in question.look()]
        assert self._began is not None
        took_s = time.monotonic() - self._began
        self._finish(Look(samples, took_s, failed=[question.failed for question in questions if question.failed]))

    def _finish(self, look: Look) -> None:
        with self._changed:
            before, self._look = self._look, look
            first = self._number == 0
            self._began = None
            self._number += 1
            self._changed.notify_all()
        if look.away and (first or str(look.away) != str(before.away)):
            logger.warning("server_away", server=self.server, reason=look.away.message, hint=look.away.hint or None)
        elif before.away and not look.away and not first:
            logger.info("server_back", server=self.server)


def _unanswered(server: str) -> Look:
    return Look(away=UnreachableError(f"{server} did not answer in time"))


def standing(server: str, look: Look) -> Sequence[Sample]:
    """Return a look's samples: first whether the server is up, then its answers."""
    up = Sample(UP, 0 if look.away else 1, (server,))
    return [up] if look.away else [up, Sample(LOOK_SECONDS, look.took_s, (server,)), *look.samples]
