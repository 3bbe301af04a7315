"""Memory: each role's resident memory after 100,000 orders, compared with that after 20,000."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground, addresses
from brewctl.lab.load.measure import measure
from brewctl.lab.play.cast import STORY
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import beside

_ORDERS = 100_000
_WARM = 20_000
_LOOK_S = 0.5
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def run(ground: Ground) -> Iterator[Figure]:
    """Measure resident memory after 100,000 orders, and as its floor that after 20,000."""
    ground.reset()
    with ground.nodes(*STORY.nodes) as nodes:
        ground.tell(f"five nodes, {_ORDERS:,} orders")
        warm: dict[str, float] = {}
        done = threading.Event()

        def look() -> None:
            while not done.wait(_LOOK_S):
                if not warm and ground.orders() >= _WARM:
                    warm.update({node.name: resident_mb(node) for node in nodes})

        with beside({"look": look}, done):
            measure(addresses(nodes), concurrency=32, warmup_s=0, orders=_ORDERS)
        ground.wait_settled()
        for node in nodes:
            before = warm.get(node.name) or None
            yield Figure(
                f"memory of {node.name}", resident_mb(node) or None, "MB", before, f"after {_WARM:,}", at_most=1.1
            )


def resident_mb(node: Node) -> float:
    """Return the resident megabytes of a process, by proc_pid_status(5); 0 if unknown."""
    try:
        found = _RESIDENT.search(Path(f"/proc/{node.process.pid}/status").read_text("ascii"))
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
