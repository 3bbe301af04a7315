"""The dedup rows in the databases that downstreams have of their own: how far they are, beside the story's outbox."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brewctl.delivery import database
from brewctl.delivery.retention import retention
from brewctl.delivery.schema import homes
from brewctl.delivery.schema.homes import Home
from brewctl.doctor import partitions
from brewctl.doctor.finding import Finding
from brewctl.errors import BrewError
from brewctl.sql import doctor_queries


@dataclass(frozen=True, slots=True)
class Dedup:
    """The dedup rows of one database."""

    groups: str  # whose they are, as a part of a check's name
    where: str  # for a message
    processed: int  # the highest outbox id
    dropped_below: int  # rows of smaller ids were dropped by retention
    ahead: int | None  # partitions behind the last row of the story's outbox; None: it has no partitions


def look(apart: Sequence[Home], last: int) -> Iterator[Dedup]:
    """Look at each of these databases. One that can't be asked is left out: it is a finding of another check.

    `last`: the id of the last row of the story's outbox.
    """
    for home in apart:
        with contextlib.suppress(BrewError), homes.connect(home, name="brewctl doctor") as own:
            (highest,) = own.execute(doctor_queries["highest_processed"], {"groups": home.groups}).fetchone() or (0,)
            yield Dedup(
                groups="-".join(home.groups),
                where=f"{database.place(home.settings.database_url)} of {home.whose}",
                processed=highest,
                dropped_below=retention.watermark(own),
                ahead=partitions.ahead(own, "processed_events", last),
            )


def check(apart: Sequence[Dedup]) -> Iterator[Finding]:
    """Judge by how many partitions each has for ids that are still to come."""
    for each in apart:
        if each.ahead is not None:
            name = f"{partitions.CHECK}-{each.groups}"
            yield partitions.judge(name, [("processed_events", each.ahead)], where=f" in {each.where}")
