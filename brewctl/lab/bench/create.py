"""Create: rate and latency at 1, 8 and 64 calls in flight, beside an empty handler, and pgbench's two INSERTs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground, empty_handler
from brewctl.lab.measure import Result, measure
from brewctl.sandbox import tools

_IN_FLIGHT = (1, 8, 64)
_WARMUP_S = 1.5
_SECONDS = 6
_ALLOWED_MS = 0.5  # beyond the two floors, at one in flight
_TWO_INSERTS = """\
BEGIN;
INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key)
VALUES (gen_random_uuid(), 'brew', 'customer-1', 450, 'EUR', 'ORDER_STATUS_NEW', gen_random_uuid()::text);
INSERT INTO outbox (aggregate_id, topic, payload, published_at)
VALUES ('order-' || gen_random_uuid(), 'pgbench', decode(repeat('00', 140), 'hex'), now());
COMMIT;
"""


def run(ground: Ground) -> Iterator[Figure]:
    """Measure an order node, and then its floors. Its publisher works meanwhile, as always."""
    ground.reset()
    with ground.nodes("order-1") as (node,):
        ours = {count: _load(ground, node.address, count, "order-1") for count in _IN_FLIGHT}
    with empty_handler() as address:
        empty = {count: _load(ground, address, count, "empty handler") for count in _IN_FLIGHT}
    ground.reset()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "two-inserts.sql"
        script.write_text(_TWO_INSERTS, "utf-8")
        inserts = {}
        for count in _IN_FLIGHT:
            ground.tell(f"pgbench, {count} clients")
            inserts[count] = tools.pgbench(ground.settings.database_url, script, clients=count, seconds=_SECONDS)
    alone = inserts[1].latency_ms + empty[1].percentile_ms(50) + _ALLOWED_MS
    yield Figure(
        "create p50, 1 in flight",
        ours[1].percentile_ms(50),
        "ms",
        alone,
        f"pgbench + empty + {_ALLOWED_MS:g}",
        at_most=1.0,
    )
    for count in _IN_FLIGHT:
        rate, floor = ours[count].rate_per_s, empty[count].rate_per_s
        most = count == _IN_FLIGHT[-1]
        yield Figure(f"create, {count} in flight", rate, "/s", floor, "empty handler", at_least=0.8 if most else None)
        yield Figure(f"create against SQL, {count} in flight", rate, "/s", inserts[count].per_s, "pgbench")
        p99, floor = ours[count].percentile_ms(99), empty[count].percentile_ms(99)
        yield Figure(f"create p99, {count} in flight", p99, "ms", floor, "empty handler", at_most=2.0 if most else None)


def _load(ground: Ground, address: str, in_flight: int, whom: str) -> Result:
    ground.tell(f"{whom}, {in_flight} in flight")
    return measure([address], concurrency=in_flight, warmup_s=_WARMUP_S, duration_s=_SECONDS)
