"""Read-only questions to PostgreSQL about the whole flow: counters, work by node, unfinished and lost orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from brewctl.config import SHORT_NAMES
from brewctl.delivery import registry
from brewctl.delivery.database import Connection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema.homes import Databases, Home
from brewctl.errors import BrewError
from brewctl.overview import effects
from brewctl.proto.orders_pb2 import ORDER_STATUS_CANCELLED, OrderStatus
from brewctl.sql import queries

_CANCELLED = OrderStatus.Name(ORDER_STATUS_CANCELLED)
_RESERVES, _NOTIFIES = SHORT_NAMES  # the groups of the story's own downstreams
_COUNTERS = {_RESERVES: "reservations", _NOTIFIES: "notifications"}


@dataclass(frozen=True)
class Counts:
    """The four counters at one moment, the unpublished rows that are set aside, and the parked events.

    `further`: the number of effects of each downstream beside the story's own, by group; None if its database can't be
    reached. `unknown`: those of the four counters that are 0 for the same reason.
    """

    orders: int
    outbox_unpublished: int
    reservations: int
    notifications: int
    outbox_failed: int = 0
    parked: int = 0
    further: Mapping[str, int | None] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()

    def story(self) -> dict[str, int | None]:
        """Return the four counters by name; None for one that is not known."""
        names = ("orders", "outbox_unpublished", "reservations", "notifications")
        return {name: None if name in self.unknown else getattr(self, name) for name in names}

    def shown(self) -> dict[str, int | None]:
        """Return the four counters, then those of the further downstreams."""
        return {**self.story(), **self.further}

    def __str__(self) -> str:
        # Programs parse the four as numbers, so an unknown one is left out of the line.
        known = {name: value for name, value in self.story().items() if value is not None}
        shown = {**known, **self.further}
        return "counts: " + " ".join(f"{name}={'?' if value is None else value}" for name, value in shown.items())


@dataclass(frozen=True)
class Unfinished:
    """An order that is not published, reserved and notified exactly once."""

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
    """Count orders, unpublished outbox rows, reservations, notifications and the effects of `further`, in one query.

    Raises BrewError if a `done` query fails.
    """
    row = effects.counted(connection, queries["counts"], further)
    own = len(row) - len(further)
    added = {each.group: count for each, count in zip(further, row[own:], strict=True)}
    return replace(Counts(*row[:own]), further=added)


def with_homes(databases: Databases) -> tuple[Counts, BrewError | None]:
    """Count as `counts` does, with all further downstreams, each in the database that holds its state.

    Also returns the first error of a downstream's own database: its counters are unknown, the others are counted.
    Raises BrewError if the story's database can't be asked.
    """
    further = registry.further(databases.settings)
    if not databases.apart:
        return counts(databases.story, further), None
    story, *apart = databases.homes
    done: dict[str, int | None] = {}
    waiting, away = 0, None
    for home in apart:  # before the orders, so that no effect is counted without its order
        try:
            with databases.to(home) as there:
                (parked,) = there.execute(queries["count_parked"], {"groups": home.groups}).fetchone() or (0,)
                _, *numbers = effects.counted(there, queries["now"], home.downstreams)
        except BrewError as error:
            done |= dict.fromkeys(home.groups)
            away = away or error
        else:
            waiting += parked
            done |= zip(home.groups, numbers, strict=True)
    orders, unpublished, set_aside, _, *numbers = effects.counted(databases.story, queries["flow"], story.downstreams)
    done |= zip(story.groups, numbers, strict=True)
    # The story's database may still have parked events from before a downstream got its own database.
    elsewhere = {"groups": [group for home in apart for group in home.groups]}
    (parked,) = databases.story.execute(queries["count_parked_of_others"], elsewhere).fetchone() or (0,)
    found = Counts(
        orders,
        unpublished,
        done[_RESERVES] or 0,
        done[_NOTIFIES] or 0,
        set_aside,
        waiting + parked,
        {each.group: done[each.group] for each in further},
        frozenset(counter for group, counter in _COUNTERS.items() if done[group] is None),
    )
    return found, away


def distribution(databases: Databases) -> dict[str, int]:
    """Count reservations by the node that made them. Raises UnreachableError."""
    if not databases.apart:
        return dict(databases.story.execute(queries["inventory_distribution"]).fetchall())
    with databases.to(databases.home(_RESERVES)) as connection:
        return dict(connection.execute(queries["inventory_distribution"]).fetchall())


def work_by_node(databases: Databases) -> dict[str, int]:
    """Count what each node published, reserved or notified. Raises UnreachableError."""
    done: dict[str, int] = dict(databases.story.execute(queries["published_by_node"]).fetchall())
    for group in (_RESERVES, _NOTIFIES):
        home = databases.home(group)
        with databases.to(home) as connection:
            done |= effects.by_node(connection, _downstream(home, group))
    return done


def distribution_line(shares: dict[str, int]) -> str:
    """Write the contract's line: `inventory distribution: {inventory-1: 87, inventory-2: 113}`."""
    return f"inventory distribution: {{{', '.join(f'{node}: {share}' for node, share in shares.items())}}}"


def unfinished(databases: Databases, *, limit: int = 10) -> list[Unfinished]:
    """Find orders that are not published, reserved and notified exactly once, oldest first. Raises UnreachableError."""
    asked: dict[str, object] = {"limit": limit}
    for group, (ids, undone) in {_RESERVES: ("reserved", "released"), _NOTIFIES: ("notified", "told")}.items():
        home = databases.home(group)
        with databases.to(home) as connection:
            statuses = effects.statuses(connection, _downstream(home, group))
        asked[ids] = [order_id for order_id, _ in statuses]
        asked[undone] = [status == _CANCELLED for _, status in statuses]
    return [Unfinished(*row) for row in databases.story.execute(queries["unfinished_orders"], asked)]


def _downstream(home: Home, group: str) -> Downstream:
    return next(each for each in home.downstreams if each.group == group)


def missing(connection: Connection, acknowledged: list[str]) -> list[str]:
    """Return those of these order ids, which clients got as an answer, that are not in the database: lost orders."""
    return [str(order_id) for (order_id,) in connection.execute(queries["missing_orders"], {"ids": acknowledged})]
