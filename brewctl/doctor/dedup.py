"""The dedup rows in the databases of single downstreams, compared with the ids of the story's outbox."""

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
class DedupState:
    """The dedup rows of one database."""

    groups: str  # the consumer groups that write them, joined for a check's name
    where: str  # the database's place, for a message
    processed: int  # the highest outbox id
    dropped_below: int  # retention dropped the rows with smaller ids
    ahead: int | None  # partitions for ids above the outbox's last row; None: the table is not partitioned


def look(apart: Sequence[Home], last: int) -> Iterator[DedupState]:
    """Read the dedup rows of each database. A database that does not answer is left out: `elsewhere` reports it.

    `last`: the highest id of the story's outbox.
    """
    for home in apart:
        with contextlib.suppress(BrewError), homes.connect(home, name="brewctl doctor") as own:
            (highest,) = own.execute(doctor_queries["highest_processed"], {"groups": home.groups}).fetchone() or (0,)
            yield DedupState(
                groups="-".join(home.groups),
                where=f"{database.place(home.settings.database_url)} of {home.whose}",
                processed=highest,
                dropped_below=retention.watermark(own),
                ahead=partitions.ahead(own, "processed_events", last),
            )


def check(apart: Sequence[DedupState]) -> Iterator[Finding]:
    """Warn of a dedup table that has too few partitions for the next ids."""
    for each in apart:
        if each.ahead is not None:
            name = f"{partitions.CHECK}-{each.groups}"
            yield partitions.judge(name, [("processed_events", each.ahead)], where=f" in {each.where}")
