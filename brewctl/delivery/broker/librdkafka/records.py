"""Our record of the library's, and the headers that it can't read."""

from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.header_reread import Again
from brewctl.delivery.broker.record import Record
from brewctl.delivery.events import Headers

# For a name that is not UTF-8 the library's method returns a list with nothing where the name belongs, to touch which
# ends the process, and an error that Python only looks for where a method is called through a function like this one.
_headers_of = methodcaller("headers")


class RecordConverter:
    """Makes our records of one topic, for one consumer."""

    def __init__(self, settings: Settings, *, name: str) -> None:
        self._settings = settings
        self._name = name
        self._again: Again | None = None

    def records(self, topic: str, messages: Sequence[Any], on_event: Callable[[Any], None]) -> list[Record]:
        """Return the records among what a poll gave; what else there is goes to `on_event`."""
        found = []
        for message in messages:
            if message.error() is not None:
                on_event(message)
                continue
            partition, offset = message.partition(), message.offset()
            try:
                headers = _headers_of(message) or []
            except SystemError:  # a name that is not UTF-8: the other client reads the record once more
                headers = self._read_again(topic, partition, offset)
            for _, value in headers:
                if value is None:  # it can be read but not sent on: it becomes an empty one
                    headers = [(name, value or b"") for name, value in headers]
                    break
            found.append(
                Record(topic, message.key(), message.value(), headers, partition, offset, message.timestamp()[1])
            )
        return found

    def _read_again(self, topic: str, partition: int, offset: int) -> Headers:
        if self._again is None:
            self._again = Again(self._settings, name=self._name)
        return self._again.headers(topic, partition, offset)

    def close(self) -> None:
        """Let the other client's connections go, where there are any."""
        if self._again:
            self._again.close()
