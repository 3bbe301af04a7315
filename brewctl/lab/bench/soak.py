"""Soak: a long steady load with retention. Sizes must level off, and calls must not become slower.

Retention is fast here: the topic keeps its records for a twelfth of the soak, and a partition has the rows of half of
that time. The figures of the first third are the floors for the last third.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from psycopg import sql

from brewctl import stdout
from brewctl.config import environment
from brewctl.delivery.broker import Admin, open_admin
from brewctl.delivery.retention import look, retention
from brewctl.delivery.retention.turn import take_turn
from brewctl.delivery.topics import keeping
from brewctl.errors import BrewError
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground, addresses
from brewctl.lab.bench.memory import resident_mb
from brewctl.lab.load.load import Load, LoadCall
from brewctl.lab.load.measure import Measurement
from brewctl.lab.play.cast import STORY
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import beside
from brewctl.sql import bench_queries
from brewctl.verify import verify

_TABLES = ("outbox", "processed_events")
_CONCURRENCY = 64
_LOOK_S = 60.0
_LOOKS = 12  # in a soak, at least
_KEEPS = 12  # the topic keeps its records for the soak's duration divided by this
_LEAST_KEEP_S = 20
_LEAST_ROWS = 1000
_SHARES = (0.5, 0.99)
# In a shorter soak, retention has not begun in the first third, as Kafka checks its segments twice a minute.
_JUDGED_S = 900.0
_OF_SIZE, _OF_P99, _OF_MEMORY = 1.25, 1.5, 1.2
_END_S = 30.0
_MB = 1e6


@dataclass(frozen=True)
class SoakLook:
    """Sizes at one moment, and rates and latencies since the last look."""

    at_s: float
    table_mb: dict[str, float]  # with indexes, over all partitions
    partitions: dict[str, int]
    dead_rows: dict[str, int]
    records: int  # in the topic
    wal_mb_s: float
    calls_p50_ms: float
    calls_p99_ms: float
    effect_p50_ms: float | None  # from an order's commit to its effect's
    effect_p99_ms: float | None
    memory_mb: dict[str, float]  # by node


def run(ground: Ground) -> Iterator[Figure]:
    """Load five nodes, and compare the last third with the first. Raises BrewError if `verify` fails."""
    ground.reset()
    duration_s, rate = ground.sizes.soak_s, ground.sizes.soak_rate
    keep_s = max(_LEAST_KEEP_S, int(duration_s / _KEEPS))
    rows = max(_LEAST_ROWS, int(rate * keep_s / 2))
    with _small_partitions(ground, rows), open_admin(ground.settings) as admin:
        admin.configure(ground.settings.topic, keeping.wanted(keep_s * 1000))
        with _retention_runs(ground, every_s=max(2.0, keep_s / 10), rows=rows), ground.nodes(*STORY.nodes) as nodes:
            said = f"the topic keeps {keep_s} s, partitions of {rows:,} rows"
            ground.tell(f"five nodes, {rate:g} orders a second for {duration_s:g} s; {said}")
            soak = _Soak(ground, nodes, admin)
            soak.load(duration_s, rate)
            ground.wait_settled()
    yield from figures(soak.looks, failed=soak.failed, judged=duration_s >= _JUDGED_S)
    found = verify(ground.settings)
    ground.tell(found.verdict)
    if not found.ok:
        raise BrewError(f"soak: {found.verdict}", hint="run it again with --keep, then `brewctl verify`")


@contextlib.contextmanager
def _small_partitions(ground: Ground, rows: int) -> Iterator[None]:
    """Replace the empty partitions, of a million ids each, with small ones; restore the size after the block."""
    settings, connection = ground.settings, ground.connection
    before = retention.state(connection).partition_rows
    retention.size(settings, connection, rows)
    for each in (part for name in _TABLES for part in look.partitions(connection, name)):
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(each.name)))
    try:
        with take_turn(connection, threading.Event()) as turn:
            retention.Run(settings, connection, turn, ground.tell).drop()
        yield
    finally:
        retention.size(settings, connection, before)


class _Soak:
    """A load, with regular looks at sizes and latencies."""

    def __init__(self, ground: Ground, nodes: Sequence[Node], admin: Admin) -> None:
        self.looks: list[SoakLook] = []
        self.failed = 0
        self._ground = ground
        self._nodes = nodes
        self._admin = admin
        self._window = Measurement()
        self._wal_bytes = ground.ask("wal_bytes")
        self._since = ground.now()

    def load(self, duration_s: float, rate: float) -> None:
        """Load the order nodes, and take a look every minute; more often in a short soak, for twelve looks."""
        load = Load(addresses(self._nodes), self._record, rate=rate, concurrency=_CONCURRENCY, duration_s=duration_s)
        every_s = min(_LOOK_S, duration_s / _LOOKS)
        began, stop, over = time.monotonic(), threading.Event(), threading.Event()

        def offer() -> None:
            try:
                load.run(stop)
            finally:
                over.set()

        self._ground.tell(_HEAD)
        with beside({"load": offer}, stop):
            for number in range(1, round(duration_s / every_s) + 1):
                over.wait(max(0.0, began + number * every_s - time.monotonic()))
                self._look(time.monotonic() - began, every_s)
                if over.is_set():
                    break

    def _record(self, call: LoadCall) -> None:
        self._window.record(call)

    def _look(self, at_s: float, seconds: float) -> None:
        window, self._window = self._window, Measurement()
        calls = window.result()
        self.failed += calls.failed
        sizes = {name: self._sizes(name) for name in _TABLES}
        wal_bytes, now = self._ground.ask("wal_bytes"), self._ground.now()
        p50, p99 = self._delays(now)
        look = SoakLook(
            at_s=round(at_s, 1),
            table_mb={name: size / _MB for name, (size, _, _) in sizes.items()},
            partitions={name: count for name, (_, count, _) in sizes.items()},
            dead_rows={name: dead for name, (_, _, dead) in sizes.items()},
            records=sum(end - first for first, end in self._admin.ends(self._ground.settings.topic).values()),
            wal_mb_s=(wal_bytes - self._wal_bytes) / _MB / seconds,
            calls_p50_ms=calls.percentile_ms(50),
            calls_p99_ms=calls.percentile_ms(99),
            effect_p50_ms=p50,
            effect_p99_ms=p99,
            memory_mb={node.name: resident_mb(node) for node in self._nodes},
        )
        self._wal_bytes, self._since = wal_bytes, now
        self.looks.append(look)
        self._ground.tell(_line(look))
        with (self._ground.logs / "soak.jsonl").open("w" if len(self.looks) == 1 else "a") as file:
            file.write(json.dumps(asdict(look)) + "\n")

    def _sizes(self, name: str) -> tuple[int, int, int]:
        """Return the bytes, the partitions and the dead rows of a table."""
        found = self._ground.connection.execute(bench_queries["table_sizes"], {"name": name}).fetchone()
        size, partitions, dead = found or (0, 0, 0)
        return int(size), int(partitions), int(dead)

    def _delays(self, until: datetime) -> tuple[float | None, float | None]:
        parameters = {"shares": list(_SHARES), "since": self._since, "until": until}
        (found,) = self._ground.connection.execute(bench_queries["recent_delays"], parameters).fetchone() or (None,)
        return (found[0], found[1]) if found else (None, None)


@contextlib.contextmanager
def _retention_runs(ground: Ground, *, every_s: float, rows: int) -> Iterator[None]:
    """Run `brewctl db retention` during the block."""
    command = [sys.executable, "-P", "-m", "brewctl", "db", "retention"]
    options = ["--every", f"{every_s:g}", "--partition-rows", str(rows)]
    ground.logs.mkdir(parents=True, exist_ok=True)
    log = ground.logs / "retention.log"
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [*command, *options],
            env={**os.environ, **environment(ground.settings), **stdout.ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield
        if process.poll() is not None:
            raise BrewError(f"db retention ended with {process.returncode}", hint=f"see {log}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_HEAD = (
    f"{'s':>6} {'outbox':>9} {'dedup':>9} {'parts':>5} {'dead':>7} {'topic':>8} {'WAL':>9} {'calls p99':>9} {'p99':>7}"
)


def _line(look: SoakLook) -> str:
    effect = "-" if look.effect_p99_ms is None else f"{look.effect_p99_ms:.0f}"
    outbox, dedup = (f"{look.table_mb[name]:.1f} MB" for name in _TABLES)
    return (
        f"{look.at_s:>6.0f} {outbox:>9} {dedup:>9} {sum(look.partitions.values()):>5} "
        f"{sum(look.dead_rows.values()):>7} {look.records:>8} {look.wal_mb_s:>4.2f} MB/s "
        f"{look.calls_p99_ms:>9.1f} {effect:>7}"
    )


def figures(looks: Sequence[SoakLook], *, failed: int, judged: bool) -> Iterator[Figure]:
    """Compare the last third of the looks with the first: maxima of sizes, medians of times."""
    third = max(1, len(looks) // 3)
    first, last = looks[:third], looks[-third:]

    def compared(
        name: str, unit: str, of: Callable[[SoakLook], float | None], most: float | None, *, peak: bool = False
    ) -> Figure:
        def taken(some: Sequence[SoakLook]) -> float | None:
            values = [value for look in some if (value := of(look)) is not None]
            return (max(values) if peak else statistics.median(values)) if values else None

        before = taken(first) or None
        at_most = most if judged and before else None
        return Figure(f"soak, {name}", taken(last), unit, before, "first third", at_most=at_most, optional=True)

    for name in _TABLES:
        yield compared(name, "MB", lambda look, name=name: look.table_mb[name], _OF_SIZE, peak=True)  # type: ignore[misc]
    yield compared("partitions", "", lambda look: sum(look.partitions.values()), _OF_SIZE, peak=True)
    yield compared("dead rows", "", lambda look: sum(look.dead_rows.values()), None, peak=True)
    yield compared("records in the topic", "", lambda look: look.records, _OF_SIZE, peak=True)
    yield compared("WAL", "MB/s", lambda look: look.wal_mb_s, _OF_P99)
    yield compared("create p50", "ms", lambda look: look.calls_p50_ms, None)
    yield compared("create p99", "ms", lambda look: look.calls_p99_ms, _OF_P99)
    yield compared("end to end p50", "ms", lambda look: look.effect_p50_ms, None)
    yield compared("end to end p99", "ms", lambda look: look.effect_p99_ms, _OF_P99)
    for name in looks[-1].memory_mb:
        yield compared(f"memory of {name}", "MB", lambda look, name=name: look.memory_mb[name] or None, _OF_MEMORY)  # type: ignore[misc]
    yield Figure("soak, calls that failed", float(failed), "", at_most=0.0, optional=True)
