"""Actions of keys that take time, such as a restart. Each runs in a thread, one at a time for each process."""

import threading
from collections.abc import Callable

from brewctl.errors import BrewError


class Jobs:
    """Runs jobs in threads, and reports those that fail. Call `begin` from one thread only."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._threads: dict[str, threading.Thread] = {}
        self.failure: Exception | None = None  # the last unexpected error

    def begin(self, name: str, do: Callable[[], object]) -> bool:
        """Run `do` in a thread. Returns False, without running it, if another job for `name` is not finished."""
        if name in self.running:
            return False
        self._threads[name] = threading.Thread(target=self._run, args=(do,), name=f"top-{name}")
        self._threads[name].start()
        return True

    @property
    def running(self) -> list[str]:
        """The names whose job is not finished."""
        return [name for name, thread in self._threads.items() if thread.is_alive()]

    def wait(self) -> None:
        """Wait for all jobs. Each has time limits of its own."""
        for thread in self._threads.values():
            thread.join()

    def _run(self, do: Callable[[], object]) -> None:
        try:
            do()
        except BrewError as error:
            self._say(str(error).splitlines()[0])
        except Exception as error:  # noqa: BLE001 - raised by the reader of `failure`
            self.failure = error
