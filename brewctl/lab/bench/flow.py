"""Flow: five nodes at work, in closed and open loops, and the CPU time of an order in each part.

The floor of the rates is one order node with its publisher but without consumers. The difference shows how much the
rest of the flow slows the calls down.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brewctl.lab.bench import cpu
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import LONGER, Ground, addresses
from brewctl.lab.load.measure import LoadResult, measure
from brewctl.lab.play.cast import ORDER_NODES, STORY
from brewctl.lab.play.nodes import Node
from brewctl.roles import inventory
from brewctl.sql import bench_queries

_IN_FLIGHT = (1, 8, 64)
_RATES = (20.0, 100.0)
_OF_ALONE = {8: 0.7, 64: 0.8}
# The delay from commit to commit has targets at this rate, if the machine's cores are less busy than _BUSY.
_JUDGED_RATE, _P50_MS, _P99_MS = 100.0, 20.0, 80.0
_BUSY = 0.7
_WARMUP_S = 1.5
_SECONDS = 6.0
_OPEN_SECONDS = 15.0
_SHARES = (0.5, 0.99)
_ORDER, _CONSUMERS, _BENCH = "order nodes", "consumers", "bench"
_PARTS = (_ORDER, _CONSUMERS, cpu.KAFKA, cpu.POSTGRESQL)


def run(ground: Ground) -> Iterator[Figure]:
    """Measure one order node alone, then five nodes: in closed loops, then in open loops."""
    ground.reset()
    with ground.nodes(ORDER_NODES[0]) as nodes:
        alone = {count: _rate(_closed(ground, nodes, count, "one order node alone")) for count in _IN_FLIGHT}
    ground.reset()
    with ground.nodes(*STORY.nodes) as nodes:
        most = 0.0
        for count in _IN_FLIGHT:
            took = _watched(ground, nodes, in_flight=count)
            name = f"{count} in flight"
            rate = _rate(took.result)
            most = max(most, rate or 0.0)
            yield Figure(f"flow, {name}", rate, "/s", alone[count], "one node alone", at_least=_OF_ALONE.get(count))
            # The leg `create` has figures of the same names without "flow".
            yield from _figures(took, name, of="flow ")
        half = most / 2
        for rate, name in (*((each, f"{each:g} orders/s") for each in _RATES), (half, "half load")):
            if not rate:
                yield Figure(f"flow, {name}", None, "/s")
                continue
            took = _watched(ground, nodes, rate=rate)
            yield Figure(f"flow, {name}", _rate(took.result), "/s", rate, "asked for")
            yield from _figures(took, name, judged=rate == _JUDGED_RATE)


def latency(ground: Ground) -> Iterator[Figure]:
    """Measure five nodes at the rate that has targets for the delay."""
    ground.reset()
    with ground.nodes(*STORY.nodes) as nodes:
        took = _watched(ground, nodes, rate=_JUDGED_RATE)
    yield from _figures(took, f"{_JUDGED_RATE:g} orders/s", judged=True)


@dataclass(frozen=True)
class _Took:
    """The result and the cost of one load of five nodes."""

    result: LoadResult
    busy: float | None  # share of all cores
    delays_ms: Sequence[float | None]  # quantiles _SHARES of the time from an order's commit to its reservation's
    orders: int  # warm-up included, as in `spent_s`
    spent_s: Mapping[str, float]


def _watched(ground: Ground, nodes: Sequence[Node], *, in_flight: int = 64, rate: float | None = None) -> _Took:
    """Load five nodes, wait until every order has its effects, and measure delays and CPU time.

    CPU time is counted from before the warm-up until the last effect, and divided by all orders of that time, as most
    of an order's work comes after the answer to the client.
    """
    since, before = ground.now(later_s=_WARMUP_S), ground.counts().orders
    groups = {
        _ORDER: [node.process.pid for node in nodes if node.name in ORDER_NODES],
        _CONSUMERS: [node.process.pid for node in nodes if node.name not in ORDER_NODES],
        **cpu.server_pids(ground.settings),
    }
    if cpu.POSTGRESQL in groups:  # its work for the bench's own queries is subtracted
        groups[_BENCH] = [ground.connection.info.backend_pid]
    meter = cpu.Meter(groups)
    if rate:
        ground.tell(f"five nodes, {rate:,.0f} orders a second")
        result = measure(addresses(nodes), rate=rate, warmup_s=_WARMUP_S, duration_s=_OPEN_SECONDS)
    else:
        result = _closed(ground, nodes, in_flight, "five nodes")
    busy = meter.busy()
    ground.wait_settled()
    spent_s = meter.spent()
    if cpu.POSTGRESQL in spent_s:
        spent_s[cpu.POSTGRESQL] -= spent_s[_BENCH]
    orders = ground.counts().orders - before
    effects = ground.effect_times(inventory.DOWNSTREAM, since=since)
    asked = {
        "shares": list(_SHARES),
        "since": since,
        "ids": [order_id for order_id, _ in effects],
        "times": [at for _, at in effects],
    }
    (found,) = ground.connection.execute(bench_queries["end_to_end"], asked).fetchone() or (None,)
    delays_ms = found or [None for _ in _SHARES]  # no order came after the warm-up
    return _Took(result, busy, delays_ms, orders, spent_s)


def _closed(ground: Ground, nodes: Sequence[Node], in_flight: int, whom: str) -> LoadResult:
    """Load in a closed loop; repeat for longer if no call succeeded."""
    for times in LONGER:
        ground.tell(f"{whom}, {in_flight} in flight")
        result = measure(addresses(nodes), concurrency=in_flight, warmup_s=_WARMUP_S, duration_s=_SECONDS * times)
        if result.count > result.failed:
            break
    return result


def _figures(took: _Took, name: str, *, of: str = "", judged: bool = False) -> Iterator[Figure]:
    # On a machine whose cores are busy, delays say nothing about the flow: they are not judged.
    judged = judged and took.busy is not None and took.busy < _BUSY
    p50, p99 = took.delays_ms
    yield Figure(f"{of}create p50, {name}", took.result.percentile_ms(50) or None, "ms")
    yield Figure(f"{of}create p99, {name}", took.result.percentile_ms(99) or None, "ms")
    yield Figure(f"end to end p50, {name}", p50, "ms", at_most=_P50_MS if judged else None)
    yield Figure(f"end to end p99, {name}", p99, "ms", at_most=_P99_MS if judged else None)
    ours = [_an_order_ms(took, part) for part in (_ORDER, _CONSUMERS)]
    five = sum(part for part in ours if part is not None) if None not in ours else None
    # None for servers that are not the sandbox's: their processes are unknown.
    yield Figure(f"CPU of five nodes, {name}", five, "ms", optional=True)
    for part in _PARTS:
        yield Figure(f"CPU of {part}, {name}", _an_order_ms(took, part), "ms", optional=True)
    yield Figure(f"cores busy, {name}", None if took.busy is None else took.busy * 100, "%", optional=True)


def _an_order_ms(took: _Took, part: str) -> float | None:
    if part not in took.spent_s or not took.orders:
        return None
    return took.spent_s[part] * 1000 / took.orders


def _rate(result: LoadResult) -> float | None:
    return result.rate_per_s or None
