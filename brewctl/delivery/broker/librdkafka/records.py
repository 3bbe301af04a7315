"""Making a `Record` of the library's message, with the headers that the library can't read."""

from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.header_reread import Again
from brewctl.delivery.broker.record import Record
from brewctl.delivery.events import Headers

# For a header name that is not UTF-8 the library's method returns a list with a null pointer and sets an error. To
# touch that pointer crashes the process. Python checks for the error only if the method is called through a function
# such as this one: then it raises SystemError.
_headers_of = methodcaller("headers")


class RecordConverter:
    """Makes the records of one consumer."""

    def __init__(self, settings: Settings, *, name: str) -> None:
        self._settings = settings
        self._name = name
        self._again: Again | None = None

    def records(self, topic: str, messages: Sequence[Any], on_event: Callable[[Any], None]) -> list[Record]:
        """Return the records among these messages; `on_event` gets the other messages."""
        found = []
        for message in messages:
            if message.error() is not None:
                on_event(message)
                continue
            partition, offset = message.partition(), message.offset()
            try:
                headers = _headers_of(message) or []
            except SystemError:  # a header name is not UTF-8: the other client reads the record again
                headers = self._read_again(topic, partition, offset)
            for _, value in headers:
                if value is None:  # a null header value can be read but not sent: it becomes an empty one
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
        """Close the other client's connections, if there are any."""
        if self._again:
            self._again.close()
