"""Restarts a consumer when a file of its downstream changes: `brewctl consume --watch`."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY_S = 0.5


class Files:
    """The files of a downstream: of the modules in its folder that its import loaded, else all in its folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder or ".").resolve()
        self._before = set(sys.modules)
        self._state = self._look()

    def imported(self) -> None:
        """Note the modules that the import has loaded."""
        self._state = self._look()

    def changed(self) -> bool:
        """Tell whether a file has changed since `imported`."""
        return self._look() != self._state

    def _look(self) -> dict[str, tuple[int, int] | None]:
        came = [sys.modules[name] for name in set(sys.modules) - self._before if name in sys.modules]
        paths = {Path(file) for module in came if (file := getattr(module, "__file__", None))}
        mine = {path for path in paths if path.is_relative_to(self._folder) and "site-packages" not in path.parts}
        return {str(path): _stamp(path) for path in mine or self._folder.glob("*.py")}


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return None


class Changes:
    """Whether a change of a file ended a run."""

    seen = False


@contextlib.contextmanager
def watched(files: Files, stop: threading.Event, changes: Changes) -> Iterator[None]:
    """Set `stop` and `changes.seen` as soon as a file changes while the block runs."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_EVERY_S) and not stop.is_set():
            if files.changed():
                changes.seen = True
                stop.set()

    thread = threading.Thread(target=look, name="files", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def await_change(files: Files, stop: threading.Event) -> bool:
    """Wait until a file changes. Return False if `stop` is set first."""
    while not stop.wait(_EVERY_S):
        if files.changed():
            return True
    return False


def restart() -> None:
    """Run the same command again in place of this process, which keeps its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
