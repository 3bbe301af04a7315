"""What becomes of a record that was sent, whichever client sent it."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from brewctl.delivery.broker.record import Record
from brewctl.errors import NotYetError


class UnavailableError(Exception):
    """Kafka did not answer in time. Of a record: whether Kafka has it is unknown."""


class ForbiddenError(NotYetError):
    """Kafka does not let this user do it. Somebody may mend that while a role runs."""


class RefusedError(Exception):
    """Kafka will never take this record. The message is its reason."""


class UnsentError(UnavailableError):
    """The record is not on its way, and others may be sent meanwhile: Kafka does not have its topic now."""


class ClockError(UnsentError):
    """The record's time is too far from the broker's clock: it is no fault of the record, and time mends it."""


class HeldError(UnsentError):
    """An earlier record with this one's key was not taken: this one must not overtake it."""


class Place(NamedTuple):
    """Where an acknowledged record is, in its topic."""

    partition: int
    offset: int


Outcome = Place | RefusedError | UnavailableError


def refused_time(record: Record) -> ClockError:
    """Return the outcome of a record whose time the broker did not take."""
    time_ms = time.time() * 1000 if record.timestamp_ms < 0 else record.timestamp_ms
    when = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    return ClockError(f"topic {record.topic}: {when} is too far from the broker's clock to be a record's time")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A broker that is there, what does not fit, and what to do about it."""

    address: str
    why: str
    hint: str

    def __str__(self) -> str:
        return f"{self.address} {self.why}"
