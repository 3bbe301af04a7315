"""A question to a server: its last answer, and when it may be asked again."""

import time
from collections.abc import Callable, Iterator, Sequence

from brewctl import log
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.exporter.families import QUESTION_UP, Sample

logger = log.get(__name__)

# After a question that took t seconds, it is asked again t * SHARE seconds later at the earliest.
SHARE = 20


class Question:
    """One question of a looker. Not thread-safe."""

    def __init__(
        self, server: str, name: str, ask: Callable[[], Sequence[Sample] | None], *, always: bool = False
    ) -> None:
        """Make a question. `ask` returns None if it has no answer yet. `always`: ask at each look, as it is cheap."""
        self._server = server
        self._name = name
        self._ask = ask
        self._always = always
        self._due = 0.0
        self._answer: list[Sample] = []
        self.failed = ""  # the error of the last try, if it failed

    def look(self) -> Sequence[Sample]:
        """Ask again if it is due, else return the last answer. Raises UnreachableError where the server is away."""
        began = time.monotonic()
        if self._always or began >= self._due:
            self._answer = list(self._asked())
            ended = time.monotonic()
            self._due = ended + SHARE * (ended - began)
        return self._answer

    def _asked(self) -> Iterator[Sample]:
        failed = ""
        try:
            answer = self._ask()
        except (UnreachableError, UsageError):
            raise  # no question to this server would get an answer
        except BrewError as error:
            # Only this question failed: a table, a topic or a right is missing, or it took too long.
            failed, answer = str(error), None
        if answer is not None or failed:
            yield Sample(QUESTION_UP, 0 if failed else 1, (self._server, self._name))
        yield from answer or ()
        if failed and failed != self.failed:
            logger.warning("metric_left_out", server=self._server, question=self._name, reason=failed)
        elif self.failed and not failed:
            logger.info("metric_back", server=self._server, question=self._name)
        self.failed = failed
