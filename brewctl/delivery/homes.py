"""Where the state of each downstream is: its dedup rows, effects and parked events are in one database, its home.

For most that is the story's, which has the orders and the outbox; BREW_<GROUP>_DATABASE_URL names another. Who asks for
state asks each home for its own downstreams alone: there may be older rows of them elsewhere, from before they moved.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from brewctl.config import Settings
from brewctl.delivery import database, registration, registry, schema, versions
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError, UnreachableError


@dataclass(frozen=True)
class Home:
    """A database, and the downstreams whose state is there. `apart`: it is not the story's."""

    settings: Settings
    downstreams: tuple[Downstream, ...]
    names: tuple[str, ...]  # MODULE:NAME of each
    apart: bool

    @property
    def groups(self) -> list[str]:
        """The names of its downstreams in its tables."""
        return [downstream.group for downstream in self.downstreams]

    @property
    def whose(self) -> str:
        """Whose it is, for a message."""
        return f"downstream{'s' if len(self.groups) > 1 else ''} {', '.join(self.groups)}"


def of(settings: Settings) -> list[Home]:
    """Return where the configured downstreams have their state: the story's first, which is always there.

    Raises UsageError where a downstream is not there, or the variable with its database holds no PostgreSQL URL.
    """
    found = [Home(settings, (), (), apart=False)]
    for name, downstream in zip(settings.downstreams, registry.configured(settings), strict=True):
        own = registration.home(settings, downstream, registry.full_name(name))
        place = next((at for at, home in enumerate(found) if home.settings.database_url == own.database_url), None)
        if place is None:
            found.append(Home(own, (downstream,), (name,), apart=True))
            continue
        home = found[place]
        names = (*home.names, name)
        command = f"brewctl db init {' '.join(names)}" if home.apart else settings.init_command
        found[place] = Home(
            replace(home.settings, init_command=command), (*home.downstreams, downstream), names, apart=home.apart
        )
    return found


def apart(settings: Settings) -> list[Home]:
    """Return the homes that are not the story's. Raises what `of` raises."""
    return [home for home in of(settings) if home.apart]


@contextlib.contextmanager
def connect(
    home: Home, story: BoundedConnection | None = None, *, name: str = "brewctl"
) -> Iterator[BoundedConnection]:
    """A connection to a home, for questions to it alone; to the story's: `story`, where that is given.

    Raises UnreachableError, which says whose database is away, and BrewError where a table is missing.
    """
    if story and not home.apart:
        yield story
        return
    try:
        with database.connect(home.settings, name=name) as connection:
            _check(home, connection)
            yield connection
    except UnreachableError as error:
        message = f"{home.whose}: {error.message}" if home.apart else error.message
        raise UnreachableError(message, hint=error.hint) from error


def _check(home: Home, connection: BoundedConnection) -> None:
    tables = schema.INBOX_TABLES if home.apart else None
    if missing := database.missing_tables(connection, reading=True, tables=tables):
        message = f"{home.whose} has no" if home.apart else "missing in postgres:"
        command = versions.command(missing, home.settings.init_command)
        raise BrewError(f"{message} {', '.join(missing)}", hint=f"run `{command}`")


def select(homes: Sequence[Home], groups: Sequence[str]) -> list[Home]:
    """Return the homes of some groups, each with the downstreams of these alone."""
    found = []
    for home in homes:
        kept = [(each, name) for each, name in zip(home.downstreams, home.names, strict=True) if each.group in groups]
        if kept:
            downstreams, names = zip(*kept, strict=True)
            found.append(replace(home, downstreams=downstreams, names=names))
    return found
