"""An event as a row of `parked_events` or `waiting_events` keeps it: with the record that it was read from."""

import json
from dataclasses import dataclass
from typing import Any

from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import Event, Headers


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """The columns that both tables have."""

    id: int
    key: str
    outbox_id: int
    event_id: str | None
    event_type: str
    topic: str
    partition: int
    offset: int
    written_ms: int
    value: bytes
    headers: str
    attempts: int  # tries that failed; 0 also of an event that was parked behind another of its key

    @property
    def record(self) -> Record:
        """The record that it was read from."""
        headers = loaded(self.headers)
        return Record(self.topic, self.key.encode(), self.value, headers, self.partition, self.offset, self.written_ms)

    def event(self, downstream: Downstream) -> Event[Any]:
        """Decode the record with the downstream's decoders of today. Raises UnreadableError."""
        record = self.record
        event = events.read(
            record.key, record.value, record.headers, record.timestamp_ms, decoders=downstream.decoder_of
        )
        if event is None:
            raise events.UnreadableError(f"{downstream.group} takes no {self.event_type} any more")
        return event


def dumped(headers: Headers) -> str:
    """Return headers as the text of the column `headers`."""
    return json.dumps([_pair(name, value) for name, value in headers])


def _pair(name: str, value: bytes) -> list[str | None]:
    try:
        return [name, value.decode()]
    except UnicodeDecodeError:
        return [name, None, value.hex()]


def loaded(text: str) -> Headers:
    """Return the headers that the column's text stands for."""
    return [
        (name, bytes.fromhex(rest[0]) if value is None else value.encode()) for name, value, *rest in json.loads(text)
    ]
