"""How far the flow has come, of one moment: the orders, and what each downstream has done of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema.homes import Databases
from brewctl.overview import effects
from brewctl.sql import queries


@dataclass(frozen=True)
class Flow:
    """The counters of any downstreams; `effects` by the names of their counters."""

    orders: int
    outbox_unpublished: int
    parked: int
    effects: Mapping[str, int]


def flow(databases: Databases, downstreams: Sequence[Downstream]) -> Flow:
    """Count orders, unpublished outbox rows, parked events, and the effects of each downstream, each where it has them.

    At once where that is one database, else the orders last. Raises UnreachableError, BrewError where a `done` query
    fails.
    """
    done: dict[str, int] = {}
    waiting = 0
    here = list(downstreams)
    for home in databases.apart:
        mine = [each for each in downstreams if each.group in home.groups]
        with databases.to(home) as there:
            (parked,) = there.execute(queries["count_parked"], {"groups": home.groups}).fetchone() or (0,)
            _, *numbers = effects.counted(there, queries["now"], mine)
        waiting += parked
        done |= zip([each.group for each in mine], numbers, strict=True)
        here = [each for each in here if each not in mine]
    orders, unpublished, _, parked, *numbers = effects.counted(databases.story, queries["flow"], here)
    done |= zip([each.group for each in here], numbers, strict=True)
    return Flow(orders, unpublished, parked + waiting, {each.counted_as: done[each.group] for each in downstreams})
