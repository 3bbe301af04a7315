"""A role's metrics. Without `--http` the counters here do nothing, and prometheus-client is not imported.

Each part of a role gets its counters once, when it is made, and updates them after each batch. Call `enable` before.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from brewctl.errors import UsageError

if TYPE_CHECKING:
    from brewctl.metrics.prometheus import Instruments, ProcessesSum

EXTRA = "pip install 'brewctl[metrics]'"


class PublishFailure(StrEnum):
    """Why rows of the outbox were not published: the values of a label."""

    REFUSED = "refused"  # Kafka will never accept the row: it is set aside
    KAFKA = "kafka"  # Kafka can't be reached, or did not acknowledge in time
    NO_TOPIC = "no_topic"
    CLOCK = "clock"  # the clocks of a broker and of PostgreSQL are too far apart
    POSTGRES = "postgres"


class RetryReason(StrEnum):
    """Why a consumer tries a batch again: the values of a label."""

    STOPPED = "stopped"  # too many events in a row failed: the downstream stops
    EFFECT = "effect"  # the effects of single events failed
    STUCK = "stuck"  # PostgreSQL ended a statement that took too long
    POSTGRES = "postgres"
    DEAD_LETTER = "dead_letter"  # a dead letter was not acknowledged
    LATER = "later"  # the handler asked for it


class Counted(Protocol):
    """How many records ended in each way since the start."""

    effects: int
    duplicates: int
    others: int
    dead: int
    parked: int


class OutboxCounters:
    """A publisher's metrics."""

    def published(self, rows: int, took_s: float) -> None:
        """Count the rows that one transaction published, and time it."""

    def failed(self, failure: PublishFailure, count: int = 1) -> None:
        """Count a failed try; for rows that Kafka refused, each of them."""


class InboxCounters:
    """A consumer's metrics."""

    def records(self, before: Counted, now: Counted) -> None:
        """Count the records that were finished between `before` and `now`."""

    def batch(self, took_s: float) -> None:
        """Time a finished batch."""

    def delivered(self, events: Sequence[Any], new: int) -> None:
        """Time the delivery of the `new` events among these, whose effects were just committed."""

    def retried(self, retry: RetryReason) -> None:
        """Count a batch that is tried again."""

    def overtaken(self, records: int) -> None:
        """Count records that were removed before the group read them."""


class Calls(Protocol):
    """An order-service's metrics. Without `--http` there is no such object, so that a call has no extra step."""

    def ended(self, method: str, code: str, took_s: float) -> None:
        """Count and time a finished call. `code`: the name of gRPC's status code."""

    def unknown(self) -> None:
        """Count a call of a method that does not exist."""


_NO_OUTBOX, _NO_INBOX = OutboxCounters(), InboxCounters()
_instruments: "Instruments | None" = None
# The variable of prometheus-client that names the folder in which several processes keep their numbers.
SHARED = "PROMETHEUS_MULTIPROC_DIR"


def enable(*, role: str, version: str, shared: bool = False) -> "Instruments":
    """Turn metrics on, and return the object that shows them. Raises UsageError without prometheus-client.

    `shared`: this process is one of several. They keep their numbers in the folder that SHARED names, and another
    process shows the sum (`summed`).
    """
    global _instruments  # noqa: PLW0603 - one for the process, as a log's configuration is
    _instruments = _prometheus().Instruments(role=role, version=version, shared=shared)
    return _instruments


def _prometheus() -> Any:
    try:
        from brewctl.metrics import prometheus  # noqa: PLC0415 - only with `--http`
    except ImportError as error:
        raise UsageError("--http: prometheus-client is not installed", hint=EXTRA) from error
    return prometheus


def summed(folder: Path, *, role: str, version: str) -> "ProcessesSum":
    """Return the object that shows the sum of processes' metrics. Raises UsageError without prometheus-client."""
    sum_: ProcessesSum = _prometheus().ProcessesSum(folder, role=role, version=version)
    return sum_


def outbox() -> OutboxCounters:
    """Return the counters of a publisher."""
    return _instruments.outbox() if _instruments else _NO_OUTBOX


def inbox(consumer: str) -> InboxCounters:
    """Return the counters of a consumer in this group."""
    return _instruments.inbox(consumer) if _instruments else _NO_INBOX


def calls() -> Calls | None:
    """Return the counters of an order-service; None if metrics are off."""
    return _instruments.calls() if _instruments else None
