"""How far the flow has come, of one moment: the orders, and what each downstream has done of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brewctl.delivery.database import Connection
from brewctl.delivery.downstream import Downstream
from brewctl.overview import effects
from brewctl.sql import queries


@dataclass(frozen=True)
class Flow:
    """The counters of any downstreams; `effects` by the names of their counters."""

    orders: int
    outbox_unpublished: int
    parked: int
    effects: Mapping[str, int]


def flow(connection: Connection, downstreams: Sequence[Downstream]) -> Flow:
    """Count orders, unpublished outbox rows, parked events, and the effects of each downstream, at once.

    Raises BrewError where a `done` query fails.
    """
    orders, unpublished, parked, *numbers = effects.counted(connection, queries["flow"], downstreams)
    names = [downstream.counted_as for downstream in downstreams]
    return Flow(orders, unpublished, parked, dict(zip(names, numbers, strict=True)))
