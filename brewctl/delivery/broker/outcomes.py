"""The outcomes of sending a record, the same for both client libraries."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from brewctl.delivery.broker.record import Record
from brewctl.errors import NotYetError


class UnavailableError(Exception):
    """Kafka did not answer in time. As a record's outcome: Kafka may have the record or not."""


class ForbiddenError(NotYetError):
    """This user lacks a right in Kafka. It may be granted while a role runs."""


class RefusedError(Exception):
    """Kafka will never accept this record. The message is Kafka's reason."""


class UnsentError(UnavailableError):
    """The record was not sent, for example because its topic does not exist. Other records may be sent meanwhile."""


class ClockError(UnsentError):
    """The record's timestamp is too far from the broker's clock. A later try succeeds once the clocks agree."""


class HeldError(UnsentError):
    """Not sent, because an earlier record with the same key was not acknowledged: their order must be kept."""


class Place(NamedTuple):
    """The partition and offset of an acknowledged record."""

    partition: int
    offset: int


Outcome = Place | RefusedError | UnavailableError


def refused_time(record: Record) -> ClockError:
    """Return the outcome of a record whose timestamp the broker refused."""
    time_ms = time.time() * 1000 if record.timestamp_ms < 0 else record.timestamp_ms
    when = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    return ClockError(f"topic {record.topic}: {when} is too far from the broker's clock to be a record's time")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A broker that answers but refuses this client: its address, why, and what to change."""

    address: str
    why: str
    hint: str

    def __str__(self) -> str:
        return f"{self.address} {self.why}"
