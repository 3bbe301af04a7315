"""What a key began and takes its time, such as a restart: in threads, for each process one at a time."""

import threading
from collections.abc import Callable

from brewctl.errors import BrewError


class Jobs:
    """Begins jobs and says what becomes of those that fail. Begin them from one thread."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._threads: dict[str, threading.Thread] = {}
        self.failure: Exception | None = None  # the last unexpected one

    def begin(self, name: str, do: Callable[[], object]) -> bool:
        """Do something for `name` in a thread. False, and it is not done, while another thing is done for it."""
        if name in self.running:
            return False
        self._threads[name] = threading.Thread(target=self._run, args=(do,), name=f"top-{name}")
        self._threads[name].start()
        return True

    @property
    def running(self) -> list[str]:
        """The names that have a job at work."""
        return [name for name, thread in self._threads.items() if thread.is_alive()]

    def wait(self) -> None:
        """Wait until all is done. Each job has bounds of its own."""
        for thread in self._threads.values():
            thread.join()

    def _run(self, do: Callable[[], object]) -> None:
        try:
            do()
        except BrewError as error:
            self._say(str(error).splitlines()[0])
        except Exception as error:  # noqa: BLE001 - raised by the reader of `failure`
            self.failure = error
