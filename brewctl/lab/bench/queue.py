"""Queue: how fast an outbox drains if its events belong to few aggregates, or an old snapshot keeps dead rows."""

import contextlib
from collections.abc import Iterator

import psycopg

from brewctl.delivery import database
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground, addresses
from brewctl.lab.load.measure import measure
from brewctl.lifecycle import wait_until
from brewctl.sql import bench_queries

_ROWS = 100_000
_AGGREGATES = (900, 50, 1)
_FILLED_AT_ONCE = 50_000
# A slow queue is given up after this time: then the rows that were published by then count.
_LONGEST_S = 40.0
_OF_FLOOR = 0.5
_PAYLOAD = bytes(140)
# Large fetches hide the cost of finding the first row. So the delay of single events is measured too.
_RATE = 100.0
_WARMUP_S = 1.5
_SECONDS = 8.0
_OF_FRESH = 1.5


def run(ground: Ground) -> Iterator[Figure]:
    """Measure the drain of events with an aggregate each; then of few aggregates; then with an old snapshot."""
    floor = _drain(ground, _ROWS)
    yield Figure("queue, an aggregate each", floor, "/s")
    for aggregates in _AGGREGATES:
        rate = _drain(ground, aggregates)
        of = f"{aggregates:,} aggregate{'s' if aggregates > 1 else ''}"
        yield Figure(f"queue, {of}", rate, "/s", floor or None, "an aggregate each", at_least=_OF_FLOOR)
    with _old_snapshot(ground):
        ground.reset()
        fresh = _delay_ms(ground)
        # While the snapshot is open, vacuum can't remove published rows' old versions: later fetches must pass them.
        _drain(ground, _ROWS, stem="before", anew=False)
        behind = _delay_ms(ground)
        rate = _drain(ground, _ROWS, stem="after", anew=False)
    yield Figure("queue, an old snapshot", rate, "/s", floor or None, "an aggregate each", at_least=_OF_FLOOR)
    name = "delay to Kafka, an old snapshot"
    yield Figure(name, behind, "ms", fresh, "a fresh outbox", at_most=_OF_FRESH)


def _drain(ground: Ground, aggregates: int, *, stem: str = "queue", anew: bool = True) -> float:
    """Let an order node publish waiting events for 40 s at most; return the events a second."""
    if anew:
        ground.reset()
    ground.tell(f"order-1: {_ROWS:,} rows of {aggregates:,} aggregates wait")
    for first in range(0, _ROWS, _FILLED_AT_ONCE):
        # Each statement adds rows after those of the last one, also within an aggregate.
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


def _delay_ms(ground: Ground) -> float:
    """Return the median milliseconds from an order's commit until its row is marked published, at a steady rate."""
    with ground.nodes("order-1") as nodes:
        ground.tell(f"order-1, {_RATE:g} orders a second")
        since = ground.now(later_s=_WARMUP_S)
        measure(addresses(nodes), rate=_RATE, warmup_s=_WARMUP_S, duration_s=_SECONDS)
        ground.wait_published()
    return ground.ask("publish_delay", since=since)


@contextlib.contextmanager
def _old_snapshot(ground: Ground) -> Iterator[None]:
    """Keep a snapshot open for the block, so that vacuum can't remove rows that die meanwhile."""
    with psycopg.connect(database.conninfo(ground.settings)) as reader:
        reader.execute("SET idle_in_transaction_session_timeout = 0")
        reader.commit()
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")  # takes the snapshot without locking a table, as tables are truncated meanwhile
        yield
        reader.rollback()
