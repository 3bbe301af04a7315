"""Workers: the rate of `serve order --workers N`. Floor: N times the rate of one worker."""

import re
from collections.abc import Iterator, Sequence

from brewctl.lab.bench import clients, machine
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import LONGER, Ground
from brewctl.lab.load.measure import LoadResult
from brewctl.lab.play.cast import ORDER_NODES, STORY
from brewctl.lab.play.nodes import Node

_NODE = ORDER_NODES[0]
# The supervisor's line, after all workers listen. Each worker prints its own line before.
_ALL_LISTEN = re.compile(rf"\[{_NODE}\] order-service listening on")
_LISTEN_S = 120.0
# For each worker. The kernel assigns connections to workers at random: with few, one worker would get most calls.
_IN_FLIGHT = 8
_CONNECTIONS = 8
_WARMUP_S = 2.0
_SECONDS = 6.0
_OF_EACH = 0.7
_OF_ONE = 0.95  # not less than one worker, apart from noise


def run(ground: Ground) -> Iterator[Figure]:
    """Measure 1, 2, 4, … workers, up to the number of cores, with eight calls in flight for each worker."""
    one: float | None = None
    p99: float | None = None
    for count in counts(machine.cores()):
        ground.reset()
        result, rate = _load(ground, count)
        slow = result.percentile_ms(99) or None
        if count == 1:
            one, p99 = rate or None, slow
            yield Figure("one worker", one, "/s")
            yield Figure("create p99, one worker", p99, "ms")
            continue
        many = one * count if one else None
        enough = cores_for(count) <= machine.cores()
        yield Figure(
            f"{count} workers", rate or None, "/s", many, f"one x {count}", at_least=_OF_EACH if enough else None
        )
        if not enough and count == counts(machine.cores())[1]:
            # The workers share the cores with clients and servers: two can't do twice as much, but must not do less.
            yield Figure(f"{count} workers against one", rate or None, "/s", one, "one worker", at_least=_OF_ONE)
        yield Figure(f"create p99, {count} workers", slow, "ms", p99, "one worker")


def counts(cores: int) -> Sequence[int]:
    """Return the numbers of workers to measure: powers of two up to the number of cores, at least 1 and 2."""
    return [2**power for power in range(max(2, cores).bit_length())]


def cores_for(workers: int) -> int:
    """Return how many cores the workers need to reach N times the rate of one.

    For each call, a client and PostgreSQL together need as much CPU time as a worker.
    """
    return 2 * workers


def _load(ground: Ground, count: int) -> tuple[LoadResult, float]:
    """Load `count` workers with as many clients; repeat for longer if no call succeeded."""
    command = (*STORY.commands[_NODE], "--workers", str(count))
    with ground.nodes(_NODE, arguments=command) as (node,):
        node.wait_for("all its workers", _all_listen, timeout_s=_LISTEN_S)
        for times in LONGER:
            ground.tell(f"{count} workers, {_IN_FLIGHT * count} in flight")
            result, rate = clients.load(
                node.address,
                clients=count,
                in_flight=_IN_FLIGHT,
                connections=_CONNECTIONS,
                warmup_s=_WARMUP_S,
                duration_s=_SECONDS * times,
            )
            if rate:
                break
    return result, rate


def _all_listen(node: Node) -> bool:
    return any(_ALL_LISTEN.search(line) for line in node.lines)
