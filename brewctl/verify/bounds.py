"""Time bounds of a verification's statements, which read whole tables."""

import contextlib
import time
from collections.abc import Iterator

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.errors import BrewError

# How long a session may wait for Kafka inside a transaction: longer than kafka_request_s.
_IDLE_S = 120


def parameters(statement_s: float) -> dict[str, str]:
    """Return the parameters of the query `bounds`."""
    return {"statement_ms": str(int(statement_s * 1000)), "idle_ms": str(_IDLE_S * 1000)}


@contextlib.contextmanager
def bounded(settings: Settings, connection: BoundedConnection, *, statement_s: float) -> Iterator[None]:
    """Raise BrewError where a statement in the block takes longer than `statement_s` seconds."""
    limits, began = settings.limits, time.monotonic()
    # The client waits longer than the server's own bound, so that a slow statement ends with the server's error.
    answer_s = statement_s + limits.database_answer_s - limits.database_statement_s
    try:
        with connection.answering_within(answer_s):
            yield
    except psycopg.errors.QueryCanceled as error:
        where = database.place(settings.database_url)
        took_s = time.monotonic() - began
        raise BrewError(
            f"postgres {where} ended a statement of verify after {took_s:.0f} s ({error.diag.message_primary})",
            hint=f"large tables take their time: allow more with --statement-timeout {statement_s * 4:g}",
        ) from error
