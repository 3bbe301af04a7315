"""The whole flow: how long an order takes to its reservation, and what each role needs of memory."""

import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from brewctl import overview
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground
from brewctl.lab.cast import ORDER_NODES, STORY
from brewctl.lab.measure import measure
from brewctl.lab.nodes import Node
from brewctl.lifecycle import beside
from brewctl.sql import bench_queries

_RATE = 100.0
_WARMUP_S = 3.0
_SECONDS = 20.0
_ORDERS = 100_000
_WARM = 20_000
_LOOK_S = 0.5
_SHARES = (0.5, 0.99)
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def latency(ground: Ground) -> Iterator[Figure]:
    """Measure from an order's commit to its reservation's, at a steady rate, with the whole cast."""
    ground.reset()
    with ground.nodes(*STORY.nodes) as nodes:
        ground.tell(f"five nodes, {_RATE:g} orders a second")
        result = measure(_addresses(nodes), rate=_RATE, warmup_s=_WARMUP_S, duration_s=_SECONDS)
        ground.wait("every effect", _settled)
    (found,) = ground.connection.execute(
        bench_queries["end_to_end"], {"shares": list(_SHARES), "warmup_s": _WARMUP_S}
    ).fetchone() or (None,)
    percentiles = found or [None for _ in _SHARES]  # no order came after the warm-up
    yield Figure("end to end p50, 100 orders/s", percentiles[0], "ms", at_most=20.0)
    yield Figure("end to end p99, 100 orders/s", percentiles[1], "ms", at_most=80.0)
    yield Figure("create p99, 100 orders/s", result.percentile_ms(99) or None, "ms")


def memory(ground: Ground) -> Iterator[Figure]:
    """Measure resident memory over 100,000 orders, beside what it was after the first 20,000."""
    ground.reset()
    with ground.nodes(*STORY.nodes) as nodes:
        ground.tell(f"five nodes, {_ORDERS:,} orders")
        warm: dict[str, float] = {}
        done = threading.Event()

        def look() -> None:
            while not done.wait(_LOOK_S):
                if not warm and overview.counts(ground.connection).orders >= _WARM:
                    warm.update({node.name: _resident_mb(node) for node in nodes})

        with beside({"look": look}, done):
            measure(_addresses(nodes), concurrency=32, warmup_s=0, orders=_ORDERS)
        ground.wait("every effect", _settled)
        for node in nodes:
            before = warm.get(node.name) or None
            yield Figure(
                f"memory of {node.name}", _resident_mb(node) or None, "MB", before, f"after {_WARM:,}", at_most=1.1
            )


def _settled(counts: overview.Counts) -> bool:
    return counts.orders == counts.reservations == counts.notifications and not counts.outbox_unpublished


def _addresses(nodes: Sequence[Node]) -> list[str]:
    return [node.address for node in nodes if node.name in ORDER_NODES]


def _resident_mb(node: Node) -> float:
    """Resident megabytes of a process: proc_pid_status(5). 0 where the system doesn't say."""
    try:
        found = _RESIDENT.search(Path(f"/proc/{node.process.pid}/status").read_text("ascii"))
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
