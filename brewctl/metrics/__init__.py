"""What a role counts and times. Without `--http` nothing: each of these objects does nothing, and imports nothing.

A role's part asks for its object once, as it is made, and tells it of each batch. `enable` comes before that.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from brewctl.errors import UsageError

if TYPE_CHECKING:
    from brewctl.metrics.prometheus import Instruments, Sum

EXTRA = "pip install 'brewctl[metrics]'"


class PublishFailure(StrEnum):
    """Why rows of the outbox were not published: the values of a label."""

    REFUSED = "refused"  # Kafka will never take the row, which is set aside
    KAFKA = "kafka"  # it is away, or did not acknowledge in time
    NO_TOPIC = "no_topic"
    CLOCK = "clock"  # of a broker, or of PostgreSQL
    POSTGRES = "postgres"


class RetryReason(StrEnum):
    """Why a consumer tries a batch again: the values of a label."""

    STOPPED = "stopped"  # so many events in a row failed that the downstream stops
    EFFECT = "effect"  # of single events failed
    STUCK = "stuck"  # PostgreSQL has ended a statement that took too long
    POSTGRES = "postgres"
    DEAD_LETTER = "dead_letter"  # not acknowledged
    LATER = "later"  # the handler asked for it


class Counted(Protocol):
    """What became of records, as sums since the start."""

    effects: int
    duplicates: int
    others: int
    dead: int
    parked: int


class OutboxCounters:
    """What a publisher tells."""

    def published(self, rows: int, took_s: float) -> None:
        """So many rows were published by one transaction."""

    def failed(self, failure: PublishFailure, count: int = 1) -> None:
        """A try failed, or, where Kafka refused rows, so many of them."""


class InboxCounters:
    """What a consumer tells."""

    def records(self, before: Counted, now: Counted) -> None:
        """Records are where they belong."""

    def batch(self, took_s: float) -> None:
        """What was read at a time is done."""

    def delivered(self, events: Sequence[Any], new: int) -> None:
        """The effects of so many `new` events among these are committed."""

    def retried(self, retry: RetryReason) -> None:
        """A batch is tried again."""

    def overtaken(self, records: int) -> None:
        """So many records were removed before the group had read them."""


class Calls(Protocol):
    """What an order-service tells. Without metrics there is none: a call has no step for it."""

    def ended(self, method: str, code: str, took_s: float) -> None:
        """A call has ended: with this code, in gRPC's words."""

    def unknown(self) -> None:
        """A call came for a method that is not there."""


_NO_OUTBOX, _NO_INBOX = OutboxCounters(), InboxCounters()
_instruments: "Instruments | None" = None
# Names the folder with the numbers of processes whose sum is shown, in prometheus-client's own words.
SHARED = "PROMETHEUS_MULTIPROC_DIR"


def enable(*, role: str, version: str, shared: bool = False) -> "Instruments":
    """Count and time from now on, and return what shows it. Raises UsageError without prometheus-client.

    `shared`: this process is one of several, whose numbers are in the folder that SHARED names, and are summed up by
    another one.
    """
    global _instruments  # noqa: PLW0603 - as a log's configuration, one for the process
    _instruments = _prometheus().Instruments(role=role, version=version, shared=shared)
    return _instruments


def _prometheus() -> Any:
    try:
        from brewctl.metrics import prometheus  # noqa: PLC0415 - only where it is used
    except ImportError as error:
        raise UsageError("--http: prometheus-client is not installed", hint=EXTRA) from error
    return prometheus


def summed(folder: Path, *, role: str, version: str) -> "Sum":
    """Return what shows the sum of processes. Raises UsageError without prometheus-client."""
    sum_: Sum = _prometheus().Sum(folder, role=role, version=version)
    return sum_


def outbox() -> OutboxCounters:
    """Return what a publisher tells what it does."""
    return _instruments.outbox() if _instruments else _NO_OUTBOX


def inbox(consumer: str) -> InboxCounters:
    """Return what a consumer of this group tells what it does."""
    return _instruments.inbox(consumer) if _instruments else _NO_INBOX


def calls() -> Calls | None:
    """Return what an order-service tells of each call; None: nobody wants to know."""
    return _instruments.calls() if _instruments else None
