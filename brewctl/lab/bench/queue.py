"""Queue: how fast an outbox is drained whose events are of few aggregates, or stand behind an old snapshot."""

import contextlib
from collections.abc import Iterator

import psycopg

from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground
from brewctl.lifecycle import wait_until
from brewctl.sql import bench_queries

_ROWS = 100_000
_AGGREGATES = (900, 50, 1)
_FILLED_AT_ONCE = 50_000
# A queue that can't be drained may take for ever: after so long, what was published by then counts.
_LONGEST_S = 40.0
_OF_FLOOR = 0.5
_PAYLOAD = bytes(140)


def run(ground: Ground) -> Iterator[Figure]:
    """Measure the drain of as many events, of an aggregate each; then of few aggregates; then behind a snapshot."""
    floor = _drain(ground, _ROWS)
    yield Figure("queue, an aggregate each", floor, "/s")
    for aggregates in _AGGREGATES:
        rate = _drain(ground, aggregates)
        of = f"{aggregates:,} aggregate{'s' if aggregates > 1 else ''}"
        yield Figure(f"queue, {of}", rate, "/s", floor or None, "an aggregate each", at_least=_OF_FLOOR)
    with _old_snapshot(ground):
        # What is published while the snapshot is open can't be cleared away: the second drain is behind all that.
        _drain(ground, _ROWS, stem="before")
        rate = _drain(ground, _ROWS, stem="after", anew=False)
    yield Figure("queue, an old snapshot", rate, "/s", floor or None, "an aggregate each", at_least=_OF_FLOOR)


def _drain(ground: Ground, aggregates: int, *, stem: str = "queue", anew: bool = True) -> float:
    """Let an order node publish events that wait; return how many a second, of those that it does in time."""
    if anew:
        ground.reset()
    ground.tell(f"order-1: {_ROWS:,} rows of {aggregates:,} aggregates wait")
    for first in range(0, _ROWS, _FILLED_AT_ONCE):
        # Rows of one statement each after those of the statement before, also within an aggregate.
        parameters = {
            "stem": stem,
            "aggregates": aggregates,
            "topic": ground.settings.topic,
            "payload": _PAYLOAD,
            "first": first,
            "rows": min(_FILLED_AT_ONCE, _ROWS - first),
        }
        ground.connection.execute(bench_queries["fill_queue"], parameters)
    with ground.nodes("order-1", late_is_fine=True), contextlib.suppress(TimeoutError):
        wait_until("an empty outbox", lambda: bool(ground.ask("all_published")), timeout_s=_LONGEST_S)
    return ground.ask("queue_rate", stem=stem)


@contextlib.contextmanager
def _old_snapshot(ground: Ground) -> Iterator[None]:
    """Keep a transaction open that may read what was there at its beginning: nothing dead is cleared away meanwhile."""
    with psycopg.connect(ground.settings.database_url) as reader:
        reader.execute("SET idle_in_transaction_session_timeout = 0")
        reader.commit()
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")  # of no table: it locks none that is emptied meanwhile
        yield
        reader.rollback()
