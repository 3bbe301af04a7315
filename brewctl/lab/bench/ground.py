"""The common ground of all legs: empty tables and topics, nodes as processes, waiting orders, and queries."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from brewctl import overview
from brewctl.config import Settings
from brewctl.delivery.database import BoundedConnection, Connection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.orders import acceptance, store
from brewctl.delivery.schema import registration
from brewctl.delivery.schema.homes import Databases
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError
from brewctl.lab.play.cast import ORDER_NODES, STORY
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import CreateRequest
from brewctl.roles.listening import VARIABLES
from brewctl.sql import bench_queries, queries

_WRITTEN_AT_ONCE = 1000
# Nodes serve without TLS and tokens, whose cost is not measured.
_PLAINTEXT = dict.fromkeys(VARIABLES, "")
_LEAVE_S = 30.0
_READY_S = 120.0  # several start at the same time
_ANY_PORT = ("--port", "0")
_WAIT_S = 300.0

# A measurement without a result is repeated, this many times as long.
LONGER = (1, 4, 16)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the long legs."""

    rows: int | None = None  # orders that `migrate` starts with; None: its default
    soak_s: float = 3600.0
    soak_rate: float = 50.0  # orders a second


class Ground:
    """The servers of a bench. `reset` empties their tables and topics. Each leg starts and ends its own nodes."""

    def __init__(
        self, settings: Settings, connection: BoundedConnection, *, logs: Path, tell: Tell, sizes: Sizes | None = None
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.databases = Databases(settings, connection)
        self.tell = tell
        self.logs = logs
        self.sizes = sizes or Sizes()

    def reset(self) -> None:
        """Wait until groups have no members, then empty tables and recreate topics."""
        topics.await_empty_groups(self.settings, timeout_s=_LEAVE_S)
        topics.create(self.settings, recreate=True)
        registration.initialize_all(self.settings, self.connection, reset=True)

    def forget_effects(self) -> None:
        """Empty the downstreams' tables and their groups' offsets, so that consumers read the topic again."""
        topics.await_empty_groups(self.settings, timeout_s=_LEAVE_S)
        topics.forget_offsets(self.settings)
        for home in self.databases.homes:
            tables = ["processed_events", *(table for each in home.downstreams for table in each.tables)]
            with self.databases.to(home) as connection:
                connection.execute(f"TRUNCATE {', '.join(tables)}".encode())

    @contextlib.contextmanager
    def nodes(
        self,
        *names: str,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        late_is_fine: bool = False,
    ) -> Iterator[list[Node]]:
        """Run nodes of these names, such as `order-1`, for the block; wait until each listens or has partitions.

        `arguments`: run this command instead of the name's own. `env`: further variables. `late_is_fine`: a node that
        does not drain in time is killed without an error.
        """
        with Nodes(
            self.settings, logs=self.logs, on_line=lambda _line: None, env={**_PLAINTEXT, **(env or {})}
        ) as nodes:
            started = [
                nodes.start(name, *(arguments or STORY.commands[name]), *(_ANY_PORT if name in ORDER_NODES else ()))
                for name in names
            ]
            for node in started:
                node.wait_ready(timeout_s=_READY_S)
            yield started
            if (late := nodes.stop()) and not late_is_fine:
                raise BrewError(f"{late[0].name} did not end cleanly", hint=f"see {late[0].log}")

    def let_wait(self, count: int) -> None:
        """Write orders directly to PostgreSQL, so that their rows wait in the outbox."""
        request = CreateRequest(customer_id="customer-1", amount_cents=450, currency="EUR")
        for first in range(0, count, _WRITTEN_AT_ONCE):
            new = [
                acceptance.accept(request, tenant_id=None, traceparent=None)
                for _ in range(min(_WRITTEN_AT_ONCE, count - first))
            ]
            store.write(self.connection, new, topic=self.settings.topic)

    def counts(self) -> overview.Counts:
        """Read the counters, in all databases. Raises UnreachableError."""
        counts, away = overview.with_homes(self.databases)
        if away:
            raise away
        return counts

    def orders(self) -> int:
        """Count the orders. May be called from another thread."""
        return int((self.connection.execute(queries["totals"]).fetchone() or (0,))[0])

    def require_one_database(self) -> None:
        """Raise BrewError if downstreams have databases of their own. For legs that use several tables in one query."""
        if self.databases.apart:
            hint = "unset BREW_<GROUP>_DATABASE_URL, or make the sandbox with `brewctl up --databases one`"
            raise BrewError("this leg measures one database, and these are several", hint=hint)

    def wait(self, what: str, seen: Callable[[overview.Counts], bool]) -> None:
        """Wait until `seen` is true of the counters. Raises BrewError after 300 s."""
        self._wait(what, lambda: seen(self.counts()))

    def wait_settled(self) -> None:
        """Wait until every order is published and has both its effects. Raises BrewError."""
        self.wait_published()  # cheaper than the counts below, which read four tables
        self.wait("every effect", _settled)

    def wait_effects(self, downstream: Downstream, count: int) -> None:
        """Wait until a downstream has `count` effects. Raises BrewError."""
        self._wait(f"every effect of {downstream.group}", lambda: self._ask("effect_count", downstream) == count)

    def effect_rate(self, downstream: Downstream) -> float:
        """Return a downstream's effects a second. Its `done` query must return their times. Raises BrewError."""
        return self._ask("effect_rate", downstream)

    def effect_times(self, downstream: Downstream, *, since: datetime) -> list[tuple[UUID, datetime]]:
        """Return the orders whose effect came after `since`, with its time."""
        text = bench_queries["effect_times"].replace("/* done */", downstream.done)
        with self.databases.to(self.databases.home(downstream.group)) as connection:
            return connection.execute(text.encode(), {"since": since}).fetchall()

    def _ask(self, query: str, downstream: Downstream) -> float:
        with self.databases.to(self.databases.home(downstream.group)) as connection:
            return _one(connection, query, bench_queries[query].replace("/* done */", downstream.done), {})

    def wait_published(self) -> None:
        """Wait until no row waits. Does not count, which would be slow with a million rows. Raises BrewError."""
        self._wait("an empty outbox", lambda: bool(self.ask("all_published")))

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            wait_until(what, condition, timeout_s=_WAIT_S)
        except TimeoutError as error:
            raise BrewError(f"{error}; {self.counts()}") from None

    def now(self, *, later_s: float = 0.0) -> datetime:
        """Return the time `later_s` seconds from now, by the database's clock."""
        row = self.connection.execute("SELECT clock_timestamp() + make_interval(secs => %s)", [later_s]).fetchone()
        assert row is not None
        found: datetime = row[0]
        return found

    def ask(self, query: str, **parameters: object) -> float:
        """Return the number that a query of bench.sql returns. Raises BrewError if it is null."""
        return _one(self.connection, query, bench_queries[query], parameters)


def _one(connection: Connection, query: str, text: str, parameters: Mapping[str, object]) -> float:
    (value,) = connection.execute(text.encode(), parameters).fetchone() or (None,)
    if value is None:
        raise BrewError(f"nothing to measure: {query}")
    return float(value)


def addresses(nodes: Sequence[Node]) -> list[str]:
    """Return the addresses of the order nodes."""
    return [node.address for node in nodes if node.name in ORDER_NODES]


def _settled(counts: overview.Counts) -> bool:
    return counts.orders == counts.reservations == counts.notifications and not counts.outbox_unpublished


@contextlib.contextmanager
def empty_handler() -> Iterator[str]:
    """Run a server whose Create does nothing, and yield its address."""
    server = [sys.executable, "-P", "-m", "brewctl.lab.bench.empty"]
    with subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            if not (address := process.stdout.readline().strip()):
                raise BrewError("the empty handler does not start")
            yield address
        finally:
            process.terminate()
