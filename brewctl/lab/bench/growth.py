"""Growth: the speed with a million orders and 200,000 dead rows, compared with ten thousand orders."""

import contextlib
import statistics
from collections.abc import Iterator

import psycopg

from brewctl.delivery.schema import partitioning
from brewctl.lab.bench import drains
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground
from brewctl.lab.load.measure import measure
from brewctl.sql import bench_queries

_FEW, _MANY, _DEAD = 10_000, 1_000_000, 200_000
_FILLED_AT_ONCE = 50_000
_DRAINS = 3
_IN_FLIGHT = 64
_WARMUP_S = 1.5
_SECONDS = 6


def run(ground: Ground) -> Iterator[Figure]:
    """Measure Create and the publisher's drain on small tables, then on large ones."""
    ground.require_one_database()
    ground.reset()
    _fill(ground, _FEW)
    created, drained = _measure(ground)
    _fill(ground, _MANY)
    ground.tell(f"{_DEAD:,} dead rows")
    partitions = partitioning.partitions(ground.connection, "outbox")
    for partition in partitions:
        ground.connection.execute(f"ALTER TABLE {partition} SET (autovacuum_enabled = off)")
    try:
        ground.connection.execute(bench_queries["touch_outbox"], {"rows": _DEAD})
        created_then, drained_then = _measure(ground)
    finally:
        for partition in partitions:
            ground.connection.execute(f"ALTER TABLE {partition} RESET (autovacuum_enabled)")
    small = f"at {_FEW:,}"
    yield Figure("create, a million orders", created_then, "/s", created, small, at_least=0.9)
    yield Figure("publisher drain, a million rows", drained_then, "/s", drained, small, at_least=0.9)


def _measure(ground: Ground) -> tuple[float, float]:
    # Write the filled rows to disk now, not during the measurement. This user may lack the right to do so.
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        ground.connection.execute("CHECKPOINT")
    with ground.nodes("order-1") as (node,):
        ground.tell(f"order-1, {_IN_FLIGHT} in flight")
        result = measure([node.address], concurrency=_IN_FLIGHT, warmup_s=_WARMUP_S, duration_s=_SECONDS)
        ground.wait_published()
    return result.rate_per_s, statistics.median(drains.drain(ground) for _ in range(_DRAINS))


def _fill(ground: Ground, orders: int) -> None:
    parameters = {"topic": ground.settings.topic, "payload": bytes(140)}
    for first in range(0, orders, _FILLED_AT_ONCE):
        if first % (4 * _FILLED_AT_ONCE) == 0:
            ground.tell(f"{orders:,} finished orders: {first:,}")
        some = min(_FILLED_AT_ONCE, orders - first)
        ground.connection.execute(bench_queries["fill_orders"], {**parameters, "orders": some})
    ground.connection.execute("ANALYZE")
