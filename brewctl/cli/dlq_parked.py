"""Parked events, as `brewctl dlq` finds and redrives them beside dead letters."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brewctl.errors import BrewError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.delivery.database import BoundedConnection
    from brewctl.delivery.dead_letters import Filter
    from brewctl.delivery.parking import Outcome, ParkedEvent

_ID = re.compile(r"p([0-9]{1,18})", re.ASCII)
_SEE = "see `brewctl dlq list --all`"


def number(text: str) -> int | None:
    """Return the number of a parked event in its id, such as p12; None where it is no such id."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match else None


def find(
    settings: "Settings", connection: "BoundedConnection", wanted: "Filter", *, settled: bool
) -> list["ParkedEvent"]:
    """Find parked events, oldest first."""
    from brewctl.delivery import parking, registry

    groups = [
        each.group
        for each in registry.configured(settings)
        if wanted.group in {"", registry.kafka_group(settings, each)}
    ]
    key = wanted.key.decode(errors="replace").replace("\0", "") or None
    found = parking.find(connection, groups, key=key, settled=settled)
    return [each for each in found if wanted.reason.lower() in each.reason.lower()]


def get(settings: "Settings", connection: "BoundedConnection", ids: Sequence[int]) -> list["ParkedEvent"]:
    """Find parked events by their numbers. Raises BrewError where there is none of one."""
    from brewctl.delivery import parking, registry

    groups = [each.group for each in registry.configured(settings)]
    found = parking.find(connection, groups, ids=ids, settled=True)
    if missing := set(ids) - {each.id for each in found}:
        raise BrewError(f"no parked event p{min(missing)}", hint=_SEE)
    return found


def redrive(settings: "Settings", connection: "BoundedConnection", chosen: Sequence["ParkedEvent"]) -> "Outcome":
    """Redrive the keys of parked events, each with all that is parked of it."""
    from brewctl.delivery import parking, registry

    outcome = parking.Outcome()
    for downstream in registry.configured(settings):
        mine = [each for each in chosen if each.group == downstream.group and not each.outcome]
        # A key's events together, in the order in which the first of each was parked.
        keys = list(dict.fromkeys(each.key for each in mine))
        if keys:
            some = parking.redrive(connection, downstream, keys, node="brewctl")
            outcome.done += some.done
            outcome.refused += some.refused
    return outcome
