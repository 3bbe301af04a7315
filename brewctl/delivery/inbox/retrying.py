"""Why a consumer tries a batch again, in the words of its log line and of its counter."""

from typing import NamedTuple

from brewctl.delivery import database
from brewctl.delivery.broker import UnavailableError
from brewctl.delivery.inbox.failures import FailingError, StoppedError
from brewctl.delivery.inbox.inbox import SLOW
from brewctl.errors import UnreachableError
from brewctl.metrics import RetryReason

_KEPT = "the batch is kept and retried"


class Trouble(NamedTuple):
    """What a batch is tried again for."""

    kind: RetryReason
    event: str  # the line's
    hint: str


def of(error: BaseException) -> Trouble:
    """Say what a batch is tried again for, and what to do about it. Raises `error` where it is no outage."""
    if isinstance(error, StoppedError):
        hint = "mend what they have in common: it takes no new events until one succeeds"
        return Trouble(RetryReason.STOPPED, "downstream_stopped", hint)
    if isinstance(error, FailingError):
        return Trouble(RetryReason.EFFECT, "effect_failed", "they are tried again, and parked if that does not help")
    if isinstance(error, SLOW):
        return Trouble(RetryReason.STUCK, "effect_stuck", f"{_KEPT}: see in pg_stat_activity what it waits for")
    if isinstance(error, database.UNAVAILABLE):
        return Trouble(RetryReason.POSTGRES, "postgres_unavailable", _KEPT)
    if isinstance(error, UnavailableError | UnreachableError):
        return Trouble(RetryReason.DEAD_LETTER, "dead_letter_unacknowledged", _KEPT)
    raise error
