"""Sample the flow during a run: counters from PostgreSQL, partition owners from Kafka."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import psycopg

from brewctl import overview
from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.broker import open_admin
from brewctl.delivery.schema import homes
from brewctl.errors import BrewError
from brewctl.lab.record.history import FlowSample, Ownership
from brewctl.lifecycle import beside
from brewctl.overview import consumer_groups

_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 0.7


class FlowWatch:
    """Takes samples in two threads. While a server is away it takes none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.impatient
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._downstreams = registry.configured(settings)
        # Counters of the downstreams that have an effect of each order.
        self._following = [each.counted_as for each in self._downstreams if each.follows_orders]
        self._unread: dict[str, tuple[float, int]] = {}  # by group: when Kafka was asked, and the lag
        self._wants_unread = threading.Event()
        self.samples: list[FlowSample] = []
        self.ownerships: list[Ownership] = []

    @contextlib.contextmanager
    def running(self) -> Iterator["FlowWatch"]:
        """Take samples while the block runs."""
        self._began = time.monotonic()
        with beside({"count": self._count, "ask": self._ask}, self._stop):
            yield self

    @property
    def now_s(self) -> float:
        """Seconds since the first sample."""
        return time.monotonic() - self._began

    @property
    def newest(self) -> FlowSample:
        """The last sample; one with zeros if there is none."""
        return self.samples[-1] if self.samples else FlowSample(0.0, 0, 0)

    def has_flowed(self, orders: float) -> bool:
        """Say whether so many orders have reached every downstream that has an effect of each order."""
        newest = self.newest
        return min([newest.orders, *map(newest.value, self._following)]) >= orders

    def has_settled(self, since_s: float) -> bool:
        """Say whether samples after `since_s` show that no event is on its way.

        That is, all rows were published and no event was parked, and after that each group had no lag. Also, each
        downstream whose `done` query counts an effect of each order has as many effects as there are orders.
        """
        self._wants_unread.set()
        settled_s = None
        for sample in reversed(self.samples):
            if sample.at_s <= since_s or not self._is_complete(sample):
                break
            settled_s = sample.at_s
        if settled_s is None or len(self._unread) < len(self._downstreams):
            return False
        # A lag that was read before all rows were published may be too small.
        return all(at_s >= settled_s and not lag for at_s, lag in self._unread.values())

    def _is_complete(self, sample: FlowSample) -> bool:
        counted = [each.counted_as for each in self._downstreams if each.done and each.follows_orders]
        waiting = sample.outbox_unpublished or sample.parked
        return not waiting and all(sample.value(name) >= sample.orders for name in counted)

    def _count(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            with (
                contextlib.suppress(BrewError, psycopg.Error),
                database.connect(self._settings) as connection,
                homes.databases(self._settings, connection) as databases,
            ):
                while True:
                    at_s = self.now_s  # read before the query: orders after this time may be missing in it
                    seen = overview.flow(databases, self._downstreams)
                    self.samples.append(
                        FlowSample(at_s, seen.orders, seen.outbox_unpublished, seen.effects, seen.parked)
                    )
                    if self._stop.wait(_LOOK_EVERY_S):
                        return

    def _ask(self) -> None:
        while not self._stop.wait(_ASK_EVERY_S):
            with contextlib.suppress(BrewError), open_admin(self._settings) as admin:
                while not self._stop.wait(_ASK_EVERY_S):
                    for downstream in self._downstreams:
                        group = registry.kafka_group(self._settings, downstream)
                        owners = admin.group(group, self._settings.topic).owners
                        self.ownerships.append(Ownership(self.now_s, downstream.group, owners))
                    if self._wants_unread.is_set():
                        at_s = self.now_s
                        for seen in consumer_groups.groups(admin, self._settings):
                            self._unread[seen.name] = at_s, seen.lag

    def longest_standstill_s(self, load_end_s: float) -> float:
        """Return the longest time in seconds in which a role made no progress although it had orders."""
        return max(standstill_s(self.samples, load_end_s, counter) for counter in ("orders", *self._following))

    def catch_up_s(self, since_s: float, *, backlog: float) -> float | None:
        """Return the seconds from `since_s` until at most `backlog` orders waited for a role; None if never."""
        for sample in self.samples:
            done = min([sample.orders, *map(sample.value, self._following)])
            waiting = max(sample.orders - done, sample.outbox_unpublished)
            if sample.at_s >= since_s and waiting <= backlog:
                return sample.at_s - since_s
        return None


def standstill_s(samples: Sequence[FlowSample], load_end_s: float, counter: str) -> float:
    """Return the longest time in which a counter did not grow, although orders came (until `load_end_s`) or waited."""
    longest, since, before = 0.0, 0.0, 0
    for sample in samples:
        now = sample.value(counter)
        if now > before or (sample.at_s > load_end_s and now >= sample.orders):
            longest, since = max(longest, sample.at_s - since), sample.at_s
        before = now
    return max(longest, samples[-1].at_s - since) if samples else 0.0
