"""Create: rate and latency at 1, 8 and 64 calls in flight. Floors: an empty handler, and pgbench with two INSERTs.

With one call in flight also without the publisher, to show how much that slows a call down.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from brewctl.delivery import database
from brewctl.errors import BrewError
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import LONGER, Ground, empty_handler
from brewctl.lab.load.measure import LoadResult, measure
from brewctl.lab.play.cast import ORDER_NODES, STORY
from brewctl.sandbox import tools
from brewctl.sandbox.tools import Transactions

_IN_FLIGHT = (1, 8, 64)
_WARMUP_S = 1.5
_SECONDS = 6
_NODE = ORDER_NODES[0]
_ALLOWED_MS = 0.3  # more than both floors together, with one call in flight and no publisher
_WITH_PUBLISHER = 1.3  # at most this many times the latency without the publisher
_TWO_INSERTS = """\
BEGIN;
INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key)
VALUES (gen_random_uuid(), 'brew', 'customer-1', 450, 'EUR', 'ORDER_STATUS_NEW', gen_random_uuid()::text);
INSERT INTO outbox (aggregate_id, topic, payload, published_at)
VALUES ('order-' || gen_random_uuid(), 'pgbench', decode(repeat('00', 140), 'hex'), now());
COMMIT;
"""


def run(ground: Ground) -> Iterator[Figure]:
    """Measure an order node with its publisher, then its floors."""
    ground.reset()
    with ground.nodes(_NODE, arguments=(*STORY.commands[_NODE], "--no-publisher")) as (node,):
        quiet = _load(ground, node.address, 1, f"{_NODE} without its publisher")
    ground.reset()
    with ground.nodes(_NODE) as (node,):
        ours = {count: _load(ground, node.address, count, _NODE) for count in _IN_FLIGHT}
    with empty_handler() as address:
        empty = {count: _load(ground, address, count, "empty handler") for count in _IN_FLIGHT}
    ground.reset()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "two-inserts.sql"
        script.write_text(_TWO_INSERTS, "utf-8")
        inserts = {count: _insert(ground, script, count) for count in _IN_FLIGHT}
    first, beside = inserts[1], _ms(empty[1], 50)
    floors = first.median_ms + beside + _ALLOWED_MS if first and beside else None
    without = _ms(quiet, 50)
    yield Figure("create p50, 1 in flight", _ms(ours[1], 50), "ms", without, "no publisher", at_most=_WITH_PUBLISHER)
    yield Figure("create p50, no publisher", without, "ms", floors, f"pgbench + empty + {_ALLOWED_MS:g}", at_most=1.0)
    for count in _IN_FLIGHT:
        rate, floor = _rate(ours[count]), _rate(empty[count])
        most = count == _IN_FLIGHT[-1]
        yield Figure(f"create, {count} in flight", rate, "/s", floor, "empty handler", at_least=0.8 if most else None)
        sql = inserts[count]
        yield Figure(f"create against SQL, {count} in flight", rate, "/s", sql.per_s if sql else None, "pgbench")
        p99, floor = _ms(ours[count], 99), _ms(empty[count], 99)
        yield Figure(f"create p99, {count} in flight", p99, "ms", floor, "empty handler", at_most=2.0 if most else None)


def _load(ground: Ground, address: str, in_flight: int, whom: str) -> LoadResult:
    """Load an address; repeat for longer if no call succeeded."""
    for times in LONGER:
        ground.tell(f"{whom}, {in_flight} in flight")
        result = measure([address], concurrency=in_flight, warmup_s=_WARMUP_S, duration_s=_SECONDS * times)
        if result.count > result.failed:
            break
    return result


def _insert(ground: Ground, script: Path, clients: int) -> Transactions | None:
    """Run pgbench; repeat for longer if no transaction ended. Returns None, and tells why, without a result."""
    for times in LONGER:
        ground.tell(f"pgbench, {clients} clients")
        url, seconds = database.conninfo(ground.settings), _SECONDS * times
        try:
            found = tools.pgbench(url, script, clients=clients, seconds=seconds, each=clients == 1)
        except BrewError as error:
            ground.tell(f"without it: {error.message}")
            return None
        if found:
            return found
    ground.tell(f"without it: no transaction of {clients} clients ended within {seconds} s")
    return None


def _rate(result: LoadResult) -> float | None:
    return result.rate_per_s or None


def _ms(result: LoadResult, percent: float) -> float | None:
    return result.percentile_ms(percent) or None
