"""Where the state of each downstream is: its dedup rows, effects and parked events are in one database, its home.

For most downstreams that is the story's database, which has the orders and the outbox; BREW_<GROUP>_DATABASE_URL names
another one. Ask each home for its own downstreams alone: after a move, older rows stay in the database before.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from brewctl.config import DEFAULT_DOWNSTREAMS, Settings, short_name
from brewctl.delivery import database, registry
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import parts, registration, setup, versions
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
        """The groups of its downstreams, which are their names in the tables."""
        return [downstream.group for downstream in self.downstreams]

    @property
    def tables(self) -> frozenset[str] | None:
        """The tables and functions of the schema that this database needs; None: all."""
        if not self.apart:
            return registration.story_tables(self.settings)
        return parts.INBOX_TABLES.union(*(downstream.tables for downstream in self.downstreams))

    @property
    def whose(self) -> str:
        """The downstreams that keep their state here, for a message."""
        return f"downstream{'s' if len(self.groups) > 1 else ''} {', '.join(self.groups)}"


def of(settings: Settings) -> list[Home]:
    """Return the databases in which the configured downstreams have their state, the story's always and first.

    Raises UsageError for an unknown downstream, or where its database's variable holds no PostgreSQL URL.
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
        command = _init_command(names) if home.apart else settings.init_command
        found[place] = Home(
            replace(home.settings, init_command=command), (*home.downstreams, downstream), names, apart=home.apart
        )
    return found


def _init_command(names: Sequence[str]) -> str:
    """Return the command that makes the tables of these downstreams."""
    if all(map(registry.is_own, names)):
        return "brewctl db init"
    return f"brewctl db init {' '.join(map(short_name, names))}"


def apart(settings: Settings) -> list[Home]:
    """Return the homes that are not the story's. Raises what `of` raises."""
    return [home for home in of(settings) if home.apart]


@contextlib.contextmanager
def connect(
    home: Home, story: BoundedConnection | None = None, *, name: str = "brewctl"
) -> Iterator[BoundedConnection]:
    """A connection to a home. For the story's it is `story`, where that is given.

    Raises UnreachableError, which names the downstreams of a database that is away, and BrewError where a table is
    missing.
    """
    if story and not home.apart:
        yield story
        return
    with _whose(home), database.connect(home.settings, name=name) as connection:
        _check(home, connection)
        yield connection


def _check(home: Home, connection: BoundedConnection) -> None:
    if missing := setup.missing_tables(connection, reading=True, tables=home.tables):
        message = f"{home.whose} has no" if home.apart else "missing in postgres:"
        command = versions.command(missing, home.settings.init_command)
        raise BrewError(f"{message} {', '.join(missing)}", hint=f"run `{command}`")


class Databases:
    """Connections to the databases of the story and of all downstreams, the shipped ones included. Not thread-safe.

    A connection to a downstream's own database is made at its first use, kept, and made anew after it was lost.
    """

    def __init__(self, settings: Settings, story: BoundedConnection, *, name: str = "brewctl") -> None:
        """`story`: an open connection to the story's database, which stays the caller's."""
        self.story = story
        self.settings = settings
        self._name = name
        self._kept: dict[str, tuple[contextlib.ExitStack, BoundedConnection]] = {}

    @cached_property
    def homes(self) -> list[Home]:
        """The home of each downstream, the story's database first. Raises what `of` raises."""
        names = dict.fromkeys((*DEFAULT_DOWNSTREAMS, *self.settings.downstreams))
        return of(replace(self.settings, downstreams=tuple(names)))

    @property
    def apart(self) -> list[Home]:
        """The homes that are not the story's. Imports no downstream where none has a database of its own."""
        return self.homes[1:] if self.settings.own_databases else []

    def home(self, group: str) -> Home:
        """Return the home of a downstream."""
        return next(home for home in self.homes if group in home.groups)

    @contextlib.contextmanager
    def to(self, home: Home) -> Iterator[BoundedConnection]:
        """A connection to a home. Raises UnreachableError, also in the block, which names the home's downstreams."""
        if not home.apart:
            yield self.story
            return
        key = home.settings.database_url
        if key not in self._kept:
            stack = contextlib.ExitStack()
            self._kept[key] = stack, stack.enter_context(connect(home, name=self._name))
        stack, connection = self._kept[key]
        try:
            with _whose(home), database.explained(home.settings):
                yield connection
        except BrewError:
            del self._kept[key]
            stack.close()
            raise

    def close(self) -> None:
        """Close the connections, except the story's."""
        while self._kept:
            _, (stack, _) = self._kept.popitem()
            stack.close()


@contextlib.contextmanager
def databases(settings: Settings, story: BoundedConnection, *, name: str = "brewctl") -> Iterator[Databases]:
    """All databases, for the block. `story`: an open connection to the story's."""
    with contextlib.closing(Databases(settings, story, name=name)) as found:
        yield found


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Databases]:
    """All databases, for the block: connects to the story's now, and to each other one at its first use.

    Raises UnreachableError where the story's is away.
    """
    with database.connect(settings) as connection, databases(settings, connection) as found:
        yield found


@contextlib.contextmanager
def _whose(home: Home) -> Iterator[None]:
    try:
        yield
    except UnreachableError as error:
        message = f"{home.whose}: {error.message}" if home.apart else error.message
        raise UnreachableError(message, hint=error.hint) from error


def select(homes: Sequence[Home], groups: Sequence[str]) -> list[Home]:
    """Return the homes of these groups, each with only the downstreams of these groups."""
    found = []
    for home in homes:
        kept = [(each, name) for each, name in zip(home.downstreams, home.names, strict=True) if each.group in groups]
        if kept:
            downstreams, names = zip(*kept, strict=True)
            found.append(replace(home, downstreams=downstreams, names=names))
    return found
