"""Find, redrive and drop parked events, in the databases of all downstreams."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from brewctl import config
from brewctl.errors import BrewError, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.delivery.database import BoundedConnection
    from brewctl.delivery.inbox.parking import ParkedEvent, ParkingResult
    from brewctl.delivery.repair.dead_letters import Filter
    from brewctl.delivery.schema.homes import Home

# The form that `parking.name` writes.
_ID = re.compile(r"p([0-9]{1,18})(?:@([A-Za-z0-9._-]{1,249}))?", re.ASCII)
_SEE = "see `brewctl dlq list --all`"


@dataclass(frozen=True, slots=True)
class Name:
    """The id of a parked event: its number in the story's database, or in the database of a group."""

    number: int
    group: str = ""

    def __str__(self) -> str:
        return f"p{self.number}@{self.group}" if self.group else f"p{self.number}"


def name(text: str) -> Name | None:
    """Parse the id of a parked event, such as p12 or p12@loyalty; None if the text is none."""
    match = _ID.fullmatch(text)
    return Name(int(match[1]), match[2] or "") if match else None


class Homes:
    """The parked events of all configured downstreams. `story`: an open connection to the story's database."""

    def __init__(self, settings: "Settings", story: "BoundedConnection") -> None:
        from brewctl.delivery.schema import homes

        self._settings = settings
        self._story = story
        self._homes = homes.of(settings)

    def find(self, wanted: "Filter", *, settled: bool) -> tuple[list["ParkedEvent"], BrewError | None]:
        """Return the parked events, oldest first, and the error of a downstream's database that did not answer."""
        from brewctl.delivery import registry
        from brewctl.delivery.schema import homes

        groups = [
            each.group
            for each in registry.configured(self._settings)
            if wanted.group in {"", registry.kafka_group(self._settings, each)}
        ]
        key = wanted.key.decode(errors="replace").replace("\0", "") or None
        found: list[ParkedEvent] = []
        away = None
        for home in homes.select(self._homes, groups):
            try:
                found += self._read(home, key=key, settled=settled)
            except BrewError as error:
                away = away or error
        return [each for each in found if wanted.reason.lower() in each.reason.lower()], away

    def get(self, names: Sequence[Name]) -> list["ParkedEvent"]:
        """Return the parked events with these ids. Raises BrewError if one does not exist."""
        known = {group for home in self._homes for group in home.groups}
        for each in names:
            if each.group and each.group not in known:
                raise BrewError(f"no parked event {each}: no downstream has the group {each.group}", hint=_SEE)
        found = []
        for home in self._homes:
            mine = [each for each in names if each.group in home.groups or not (each.group or home.apart)]
            there = self._read(home, ids=[each.number for each in mine], settled=True) if mine else []
            for each in mine:
                same = [event for event in there if event.id == each.number and each.group in {"", event.group}]
                if not same:
                    raise BrewError(f"no parked event {each}", hint=_SEE)
                found += same
        return found

    def require_channel(self, chosen: Sequence["ParkedEvent"]) -> None:
        """Raise UsageError where a redrive by this process would not do what a group's nodes do.

        If the nodes use lanes, as for the webhook, and this process does not, it would write rows and make no call.
        """
        from brewctl.delivery.inbox import waiting_events
        from brewctl.delivery.schema import homes

        for home, mine in self._at_home(chosen):
            meant = {each.group for each in mine}
            with homes.connect(home, self._story) as connection:
                asked = [each for each in home.downstreams if each.group in meant]
                for group in waiting_events.without_lanes(connection, asked):
                    raise _not_as_its_nodes(group, home.names[home.groups.index(group)])

    def redrive(self, chosen: Sequence["ParkedEvent"]) -> "ParkingResult":
        """Redrive all parked events of these events' keys, in the databases of their downstreams."""
        from brewctl.delivery.inbox import parking
        from brewctl.delivery.schema import homes

        outcome = parking.ParkingResult()
        for home, mine in self._at_home(chosen):
            with homes.connect(home, self._story) as connection:
                for downstream in home.downstreams:
                    # The events of a key are redriven together. The keys are in the order of their first parked event.
                    keys = list(dict.fromkeys(each.key for each in mine if each.group == downstream.group))
                    if keys:
                        outcome.add(parking.redrive(connection, downstream, keys, node="brewctl"), apart=home.apart)
        return outcome

    def drop(self, chosen: Sequence["ParkedEvent"]) -> "ParkingResult":
        """Drop parked events: they will never have their effect."""
        from brewctl.delivery.inbox import parking
        from brewctl.delivery.schema import homes

        outcome = parking.ParkingResult()
        for home, mine in self._at_home(chosen):
            with homes.connect(home, self._story) as connection:
                outcome.add(parking.drop(connection, mine), apart=home.apart)
        return outcome

    def _read(self, home: "Home", *, settled: bool, **asked: Any) -> list["ParkedEvent"]:
        from brewctl.delivery.inbox import parking
        from brewctl.delivery.schema import homes

        with homes.connect(home, self._story) as connection:
            found = parking.find(connection, home.groups, settled=settled, **asked)
        return [replace(each, apart=home.apart) for each in found]

    def _at_home(self, chosen: Sequence["ParkedEvent"]) -> Iterator[tuple["Home", list["ParkedEvent"]]]:
        for home in self._homes:
            mine = [each for each in chosen if each.group in home.groups and not each.outcome]
            if mine:
                yield home, mine


def _not_as_its_nodes(group: str, name: str) -> UsageError:
    if config.short_name(name) == config.WITH_CHANNELS:
        wanted = f"{config.CHANNEL_VARIABLE}={config.Channel.WEBHOOK}"
        return UsageError(
            f"nothing was redriven: nodes of {group} call the webhook, and this command would call nobody",
            hint=f"set {wanted} and the other variables of its nodes; or start a node with the log channel first",
        )
    return UsageError(
        f"nothing was redriven: nodes of {group} have lanes, and {name} has none here",
        hint="use the code and the variables of its nodes; or start a node without lanes first",
    )
