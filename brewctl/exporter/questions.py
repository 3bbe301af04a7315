"""Questions to a server: what each answered, and how soon it may be asked again."""

import time
from collections.abc import Callable, Iterator, Sequence

from brewctl import log
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.exporter.families import QUESTION_UP, Sample

logger = log.get(__name__)

# A question takes up at most this part of a server's time.
SHARE = 20


class Question:
    """One question of a looker. Not for two threads at a time."""

    def __init__(
        self, server: str, name: str, ask: Callable[[], Sequence[Sample] | None], *, always: bool = False
    ) -> None:
        """Prepare to ask. `ask` returns None where it does not know yet. `always`: at each look: it costs nothing."""
        self._server = server
        self._name = name
        self._ask = ask
        self._always = always
        self._due = 0.0
        self._answer: list[Sample] = []
        self.failed = ""  # why it has no answer

    def look(self) -> Sequence[Sample]:
        """Ask again, if what it costs allows that, else give the last answer. Raises where its server is away."""
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
            raise  # nobody can ask this server anything
        except BrewError as error:
            # It fails for itself alone: a table, a topic or a right is missing, or it took too long.
            failed, answer = str(error), None
        if answer is not None or failed:
            yield Sample(QUESTION_UP, 0 if failed else 1, (self._server, self._name))
        yield from answer or ()
        if failed and failed != self.failed:
            logger.warning("metric_left_out", server=self._server, question=self._name, reason=failed)
        elif self.failed and not failed:
            logger.info("metric_back", server=self._server, question=self._name)
        self.failed = failed
