"""The bench: each leg of the flow beside its floor, measured in the same run.

A floor is what the same machine does at this moment with nothing of ours: an empty gRPC handler, pgbench, the bare
Kafka client, Kafka's own tools. Figures of different machines, or days, don't compare; their ratios do.
"""

from collections.abc import Callable, Iterator, Mapping

from brewctl.lab.bench import create, drains, flow, growth, memory, migrate, queue, startup, workers
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground

Leg = Callable[[Ground], Iterator[Figure]]

LEGS: Mapping[str, Leg] = {
    "create": create.run,
    "workers": workers.run,
    "publish": drains.publish,
    "consume": drains.consume,
    "flow": flow.run,
    "latency": flow.latency,
    "memory": memory.run,
    "startup": startup.run,
    "growth": growth.run,
    "queue": queue.run,
    "migrate": migrate.run,
}
