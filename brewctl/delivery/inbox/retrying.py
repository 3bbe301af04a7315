"""Names the reason for which `consumption` retries a batch: for its log line and its counter."""

from typing import NamedTuple

from brewctl.delivery import database
from brewctl.delivery.broker import UnavailableError
from brewctl.delivery.inbox.failures import SLOW, FailingError, StoppedError
from brewctl.errors import UnreachableError
from brewctl.metrics import RetryReason

_KEPT = "the batch is kept and retried"


class Trouble(NamedTuple):
    """Why a batch is tried again."""

    reason: RetryReason
    event: str  # the name of the log line
    hint: str


def of(error: BaseException) -> Trouble:
    """Return why a batch that raised `error` is tried again. Raises `error` where a retry can't help."""
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
