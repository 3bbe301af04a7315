"""Read-only questions to PostgreSQL about the whole flow: the counters, who did what, what is unfinished or lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from brewctl.config import Settings
from brewctl.delivery import homes, registry
from brewctl.delivery.database import BoundedConnection, Connection
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.overview import effects
from brewctl.sql import queries


@dataclass(frozen=True)
class Counts:
    """The four counters, of one moment; how many unpublished rows are set aside, how many events are parked.

    `further`: how many effects each downstream beside the story's own has, by its group; None: its database is away.
    """

    orders: int
    outbox_unpublished: int
    reservations: int
    notifications: int
    outbox_failed: int = 0
    parked: int = 0
    further: Mapping[str, int | None] = field(default_factory=dict)

    def story(self) -> dict[str, int]:
        """Return the four counters of the story, by name."""
        return {name: getattr(self, name) for name in ("orders", "outbox_unpublished", "reservations", "notifications")}

    def shown(self) -> dict[str, int | None]:
        """Return the four counters, then those of the further downstreams."""
        return {**self.story(), **self.further}

    def __str__(self) -> str:
        return "counts: " + " ".join(
            f"{name}={'?' if value is None else value}" for name, value in self.shown().items()
        )


@dataclass(frozen=True)
class Unfinished:
    """An order whose story has not been told exactly once."""

    order_id: UUID
    events: int
    published: int
    reserved: bool
    notified: bool

    def __str__(self) -> str:
        def yes(flag: bool) -> str:
            return "yes" if flag else "no"

        told = f"events={self.events} published={self.published}"
        return f"order {self.order_id}: {told} reserved={yes(self.reserved)} notified={yes(self.notified)}"


def counts(connection: Connection, further: Sequence[Downstream] = ()) -> Counts:
    """Count orders, unpublished outbox rows, reservations and notifications, and what `further` have done, at once.

    Raises BrewError where a `done` query fails.
    """
    row = effects.counted(connection, queries["counts"], further)
    own = len(row) - len(further)
    added = {each.group: count for each, count in zip(further, row[own:], strict=True)}
    return replace(Counts(*row[:own]), further=added)


def with_homes(connection: BoundedConnection, settings: Settings) -> tuple[Counts, BrewError | None]:
    """Count as `counts` does, and what the further downstreams have done where they have their state.

    Returns too why a database of their own could not be asked, the first: the others are counted. Raises BrewError
    where the story's can't be.
    """
    own = [each.group for each in registry.further(settings)]
    story, *apart = homes.of(settings) if own else (None,)
    found = counts(connection, [each for each in story.downstreams if each.group in own] if story else ())
    further, parked, away = dict(found.further), found.parked, None
    for home in apart:
        try:
            with homes.connect(home) as there:
                (waiting,) = there.execute(queries["count_parked"], {"groups": home.groups}).fetchone() or (0,)
                _, *done = effects.counted(there, queries["now"], home.downstreams)
        except BrewError as error:
            further |= dict.fromkeys(home.groups)
            away = away or error
        else:
            parked += waiting
            further |= zip(home.groups, done, strict=True)
    ordered = {group: further[group] for group in own}
    return replace(found, further=ordered, parked=parked), away


def distribution(connection: Connection) -> dict[str, int]:
    """Count reservations by the node that made them."""
    return dict(connection.execute(queries["inventory_distribution"]).fetchall())


def work_by_node(connection: Connection) -> dict[str, int]:
    """Count what each node has published, reserved or notified."""
    return dict(connection.execute(queries["work_by_node"]).fetchall())


def distribution_line(shares: dict[str, int]) -> str:
    """Write the contract's line: `inventory distribution: {inventory-1: 87, inventory-2: 113}`."""
    return f"inventory distribution: {{{', '.join(f'{node}: {share}' for node, share in shares.items())}}}"


def unfinished(connection: Connection, *, limit: int = 10) -> list[Unfinished]:
    """Find orders that are not published, reserved and notified exactly once, oldest first."""
    return [Unfinished(*row) for row in connection.execute(queries["unfinished_orders"], {"limit": limit})]


def missing(connection: Connection, acknowledged: list[str]) -> list[str]:
    """Of the order ids that a client was given, find those that are not in the database: lost ones."""
    return [str(order_id) for (order_id,) in connection.execute(queries["missing_orders"], {"ids": acknowledged})]
