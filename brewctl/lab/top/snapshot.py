"""The state that `top` shows: read from PostgreSQL, Kafka and the process table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from brewctl.overview import NodeRow


@dataclass(frozen=True)
class Counters:
    """Counters of the flow, from PostgreSQL."""

    orders: int
    unpublished: int
    published: int
    effects: Mapping[str, int | None]  # by the name of each downstream's counter; None: could not be counted
    set_aside: int  # of the unpublished
    oldest_s: float | None  # age of the oldest row that is ready; None: no row waits
    estimated: frozenset[str] = frozenset()  # counters that are estimates: see `counting`

    def growing(self) -> dict[str, int | None]:
        """Return the counters that only grow, by name."""
        return {"orders": self.orders, "published": self.published, **self.effects}


@dataclass(frozen=True)
class Process:
    """A replica of a role, or a server."""

    name: str
    role: str  # order, publisher, a downstream's role, kafka or postgres
    state: str  # one of those in lab.look
    pid: int | None
    ours: bool = False  # it is in the sandbox's state file, so keys may act on it
    row: NodeRow | None = None  # of a replica: its own row in PostgreSQL
    place: str = ""  # address of a server
    leads: tuple[int, ...] = ()  # of a broker: the topic's partitions that it leads
    in_sync: int = 0  # of a broker: how many of its `holds` replicas are in sync
    holds: int = 0


@dataclass(frozen=True)
class GroupPartition:
    """A partition of a consumer group."""

    partition: int
    owner: str  # "": none
    lag: int
    moved_s: float | None  # seconds since its owner got it; None: before the first look


@dataclass(frozen=True)
class ShownGroup:
    """A consumer group."""

    name: str
    state: str  # Kafka's name for it
    places: tuple[GroupPartition, ...]


@dataclass(frozen=True)
class Snapshot:
    """One look at everything. While a server is away, its part is old, and `troubles` has the error."""

    at_s: float  # time.monotonic()
    counters: Counters | None = None
    downstreams: tuple[str, ...] = ()  # the names of their counters
    dead_letters: int | None = None  # records of their topic
    processes: tuple[Process, ...] = ()
    groups: tuple[ShownGroup, ...] = ()
    troubles: dict[str, str] = field(default_factory=dict)  # errors, by server

    def process(self, name: str) -> Process | None:
        """Return the process of this name, or None."""
        return next((process for process in self.processes if process.name == name), None)

    def with_killed(self, pids: Mapping[str, int | None]) -> "Snapshot":
        """Return a copy in which gone processes among `pids`, by name, are shown as killed by a key."""
        return replace(
            self,
            processes=tuple(
                replace(each, state="killed") if each.state == "gone" and each.name in pids else each
                for each in self.processes
            ),
        )

    @property
    def addresses(self) -> list[str]:
        """The addresses of order-services; also of paused ones, which still accept connections."""
        return [
            process.row.address
            for process in self.processes
            if process.state in {"runs", "paused"} and process.row and process.row.address
        ]
