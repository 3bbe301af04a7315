"""What `top` knows at one moment: read from PostgreSQL, Kafka and the process table, never guessed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from brewctl.overview import NodeRow


@dataclass(frozen=True)
class Counters:
    """The flow in numbers, as PostgreSQL has them."""

    orders: int
    unpublished: int
    published: int
    effects: Mapping[str, int | None]  # of each downstream, by the name of its counter; None: could not be counted
    set_aside: int  # of the unpublished
    oldest_s: float | None  # how long the oldest row that is ready waits; None where none does
    # Between two exact counts of large tables: the exact one, and what PostgreSQL says was added since.
    estimated: frozenset[str] = frozenset()  # names of counters

    def growing(self) -> dict[str, int | None]:
        """Return what only grows, by name."""
        return {"orders": self.orders, "published": self.published, **self.effects}


@dataclass(frozen=True)
class Process:
    """A replica of a role, or a server."""

    name: str
    role: str  # order, publisher, a downstream's, kafka or postgres
    state: str  # a word of lab.look
    pid: int | None
    ours: bool = False  # in the state file: may be killed
    row: NodeRow | None = None  # of a replica: what it says of itself
    place: str = ""  # of a server
    leads: tuple[int, ...] = ()  # partitions of the topic, of a broker
    in_sync: int = 0  # with how many of those that it holds
    holds: int = 0


@dataclass(frozen=True)
class GroupPartition:
    """A partition, as a group has it."""

    partition: int
    owner: str  # "": none
    lag: int
    moved_s: float | None  # since it came to its owner; None where that was before the first look


@dataclass(frozen=True)
class ShownGroup:
    """A consumer group."""

    name: str
    state: str  # Kafka's word
    places: tuple[GroupPartition, ...]


@dataclass(frozen=True)
class Snapshot:
    """One look at everything. What could not be asked is as it was, and `troubles` says why."""

    at_s: float  # time.monotonic()
    counters: Counters | None = None
    downstreams: tuple[str, ...] = ()  # the names of their counters
    dead_letters: int | None = None  # records of their topic
    processes: tuple[Process, ...] = ()
    groups: tuple[ShownGroup, ...] = ()
    troubles: dict[str, str] = field(default_factory=dict)  # of postgres, of kafka

    def process(self, name: str) -> Process | None:
        """Return the process of a name."""
        return next((process for process in self.processes if process.name == name), None)

    def with_killed(self, pids: Mapping[str, int | None]) -> "Snapshot":
        """Return a copy in which gone processes that a key has killed are `killed`; `pids` by their names."""
        return replace(
            self,
            processes=tuple(
                replace(each, state="killed") if each.state == "gone" and each.name in pids else each
                for each in self.processes
            ),
        )

    @property
    def addresses(self) -> list[str]:
        """Where order-services take orders; a paused one listens, and its callers wait."""
        return [
            process.row.address
            for process in self.processes
            if process.state in {"runs", "paused"} and process.row and process.row.address
        ]
