"""The dedup rows in the databases that downstreams have of their own: how far they are, beside the story's outbox."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brewctl.config import Settings
from brewctl.delivery import database, homes
from brewctl.delivery.database import Connection
from brewctl.errors import BrewError, UsageError
from brewctl.sql import doctor_queries


@dataclass(frozen=True, slots=True)
class Dedup:
    """The dedup rows of one database."""

    groups: str  # whose they are, as a part of a check's name
    where: str  # for a message
    processed: int  # the highest outbox id
    dropped_below: int  # rows of smaller ids were dropped by retention
    ahead: int | None  # partitions behind the last row of the story's outbox; None: it has no partitions


def look(settings: Settings, story: Connection) -> Sequence[Dedup]:
    """Look at each. One that can't be asked is left out: it is a finding of another check."""
    (last,) = story.execute(doctor_queries["last_row"]).fetchone() or (0,)
    return tuple(_look(settings, last))


def _look(settings: Settings, last: int) -> Iterator[Dedup]:
    try:
        apart = homes.apart(settings)
    except UsageError:  # a downstream that can't be found
        return
    for home in apart:
        with contextlib.suppress(BrewError), homes.connect(home, name="brewctl doctor") as own:
            asked = {"groups": home.groups, "last": last}
            found = own.execute(doctor_queries["dedup_rows"], asked).fetchone() or (0, 0, None)
            where = f"{database.place(home.settings.database_url)} of {home.whose}"
            yield Dedup("-".join(home.groups), where, *found)
