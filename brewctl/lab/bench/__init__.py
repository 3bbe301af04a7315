"""The bench: measure each leg of the flow, and in the same run its floor.

A floor is the speed of this machine without our code: an empty gRPC handler, pgbench, the bare Kafka client, Kafka's
own tools. Figures of different machines or days can't be compared, but their ratios to the floors can.
"""

from collections.abc import Callable, Iterator, Mapping

from brewctl.lab.bench import create, drains, flow, growth, memory, migrate, queue, soak, startup, workers
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
    "soak": soak.run,
}
