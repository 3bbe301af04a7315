"""The progress of `brewctl up`, on stderr: a spinner and a bar in a terminal, lines in a pipe."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from brewctl.cli import output


class Shown:
    """Shows progress; implements the sandbox's Progress. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._current: Progress | None = None
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current:
            self._current.stop()

    def step(self, text: str) -> None:
        """Show a step that begins."""
        self._begin(
            text, Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), **self._how())
        )

    def advance(self, done: int, total: int, what: str) -> None:
        """Show how many of the downloads are done."""
        if what != self._said:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._begin(what, Progress(*columns, **self._how()))
        if self._current:
            self._current.update(self._current.task_ids[0], completed=done, total=total)

    def _begin(self, text: str, progress: Progress) -> None:
        if self._current:
            self._current.stop()
        self._said = text
        if self._console.is_terminal:
            self._current = progress
            progress.add_task(text, total=None)
            progress.start()
        else:
            output.note(text)

    def _how(self) -> dict[str, Any]:
        return {"console": self._console, "transient": True}
