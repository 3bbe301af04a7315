"""The progress of the whole flow at one moment: the number of orders, and of each downstream's effects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema.homes import Databases
from brewctl.overview import effects
from brewctl.sql import queries


@dataclass(frozen=True)
class Flow:
    """The counters of the flow. `effects`: by the name of each downstream's counter."""

    orders: int
    outbox_unpublished: int
    parked: int
    effects: Mapping[str, int]


def flow(databases: Databases, downstreams: Sequence[Downstream]) -> Flow:
    """Count orders, unpublished outbox rows, parked events, and each downstream's effects in its own database.

    One query if that is a single database; else the orders are counted last. Raises UnreachableError; BrewError if a
    `done` query fails.
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
