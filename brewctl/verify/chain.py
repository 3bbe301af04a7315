"""The whole chain: orders → outbox → topic → dedup rows and effects → committed offsets, and the dead letters.

It is sound while everything runs, because it looks against the stream:

    committed offsets ─► snapshot of PostgreSQL ─► ends of the topics ─► records up to there
      what is behind them is durable in it   what it calls published is before those

A record of a row that is younger than the snapshot is looked up in the present.
"""

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import Reader, open_admin, open_reader
from brewctl.delivery.database import Connection
from brewctl.delivery.topics import GROUPS
from brewctl.sql import verify_queries
from brewctl.verify.letters import Letters
from brewctl.verify.result import SHOWN, Check, Facts, Verification
from brewctl.verify.topic import Records

Progress = Callable[[int, int], None]
Bounds = dict[int, tuple[int, int]]

# One statement over whole tables; and how long the snapshot's session may wait for Kafka, which must be longer
# than kafka_request_s.
_STATEMENT_S = 900
_IDLE_S = 120
_EFFECTS = {"inventory": "reservation", "notifications": "notification"}
_WORKSPACE = ("create_event", "create_effect", "create_edge", "create_position", "create_seen", "create_letter")


def verify(settings: Settings, *, progress: Progress | None = None) -> Verification:
    """Check the whole chain. `progress` is told how many records were read, of how many.

    Memory is flat: what grows with the number of orders is kept in temporary tables of PostgreSQL. Changes nothing.
    Raises UnreachableError, and BrewError where a table or a topic is missing.
    """
    with open_admin(settings) as admin:
        committed = {group: admin.committed(group, settings.topic) for group in GROUPS}
    with (
        open_reader(settings) as reader,
        database.connect(settings) as fresh,
        database.connect(settings) as snapshot,
    ):
        database.require_direct(snapshot, "brewctl verify")
        database.check_schema(snapshot)
        bounds = {"statement_ms": str(_STATEMENT_S * 1000), "idle_ms": str(_IDLE_S * 1000)}
        snapshot.execute(verify_queries["bounds"], bounds)
        for table in _WORKSPACE:
            snapshot.execute(verify_queries[table])
        snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot.read_only = True
        with snapshot.transaction():
            return _Chain(settings, snapshot, committed).follow(reader, fresh, progress or (lambda _done, _total: None))


class _Chain:
    def __init__(self, settings: Settings, snapshot: Connection, committed: Mapping[str, Mapping[int, int]]) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._committed = committed
        self._parameters: dict[str, Any] = {
            "shown": SHOWN,
            "groups": list(GROUPS),
            "topic": settings.topic,
            "dead_letter_topic": settings.dead_letter_topic,
        }

    def follow(self, reader: Reader, fresh: Connection, progress: Progress) -> Verification:
        self._execute("fill_event")  # the snapshot is of this moment
        records = Records(self._settings, self._snapshot, fresh)
        letters = Letters(self._settings, self._snapshot)
        # In this order: the record that a letter names is before the topic's end.
        letter_bounds = reader.bounds(self._settings.dead_letter_topic)
        bounds = reader.bounds(self._settings.topic)
        self._note_offsets(bounds)
        done, total = 0, _size(bounds) + _size(letter_bounds)
        for topic, ranges, take in (
            (self._settings.dead_letter_topic, letter_bounds, letters.take),
            (self._settings.topic, bounds, records.take),
        ):
            for batch in reader.read(topic, ranges):
                take(batch)
                done += len(batch)
                progress(done, total)
        self._execute("settle_letters")
        self._execute("analyze")
        facts = self._facts(bounds)
        checks = [*self._outbox_checks(facts), *records.checks, *self._topic_checks(facts)]
        for group in GROUPS:
            checks += self._group_checks(group, facts)
        self._judge(letters.check, "dead_letters")
        return Verification([*checks, letters.check], facts)

    def _note_offsets(self, bounds: Bounds) -> None:
        firsts, nexts = zip(*bounds.values(), strict=True)
        self._execute("fill_edge", partitions=list(bounds), firsts=list(firsts), nexts=list(nexts))
        for group, offsets in self._committed.items():
            self._execute("fill_position", consumer=group, partitions=list(offsets), nexts=list(offsets.values()))

    def _outbox_checks(self, facts: Facts) -> list[Check]:
        return [
            self._judge(
                Check("event-per-order", "each order has exactly one outbox row", facts.orders), "event_per_order"
            ),
            self._judge(
                Check("order-per-event", "every outbox row has its order", facts.outbox_rows), "order_per_event"
            ),
            self._judge(Check("unpublished", "every outbox row is published", facts.outbox_rows), "unpublished"),
            self._judge(Check("lost", "every published row is in the topic", facts.published_here), "lost"),
        ]

    def _topic_checks(self, facts: Facts) -> list[Check]:
        return [
            self._judge(Check("split-keys", "a key stays in one partition", facts.events), "split_keys"),
            self._judge(Check("out-of-order", "each key comes in the outbox's order", facts.events), "out_of_order"),
        ]

    def _group_checks(self, group: str, facts: Facts) -> list[Check]:
        effect = _EFFECTS[group]
        counted = self._count("count_group", consumer=group)
        return [
            self._judge(Check(f"{group}-{name}", claim, examined), query, consumer=group, effect=effect)
            for name, claim, examined, query in (
                ("missing", f"every order has its {effect}", facts.orders, "missing"),
                ("doubled", f"no order has a second {effect}", counted["effects"], "doubled"),
                ("orphans", f"no {effect} is without its order", counted["effects"], "orphans"),
                ("dedup", f"{effect}s and dedup rows agree", counted["processed"], "dedup"),
                ("offsets", "no offset is ahead of durable work", counted["behind"], "offsets"),
            )
        ]

    def _judge(self, check: Check, query: str, **parameters: Any) -> Check:
        rows = self._execute(query, **parameters).fetchall()
        if rows:
            check.add(rows[0][0], [text for _, text in rows])
        return check

    def _facts(self, bounds: Bounds) -> Facts:
        letters: dict[str, dict[str, int]] = {}
        for group, outcome, count in self._execute("count_letters"):
            letters.setdefault(group, {"open": 0, "redriven": 0, "dropped": 0})[outcome] = count
        lag = {
            group: {
                partition: max(0, end - max(start, offsets.get(partition, 0)))
                for partition, (start, end) in bounds.items()
            }
            for group, offsets in self._committed.items()
        }
        return Facts(
            **self._count("count_outbox"),
            **self._count("count_records"),
            **self._count("count_repeats"),
            **self._count("count_removed_events"),
            **self._count("count_repeated_letters"),
            dead_letters=letters,
            lag=lag,
        )

    def _count(self, query: str, **parameters: Any) -> dict[str, int]:
        with self._snapshot.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(verify_queries[query], self._parameters | parameters).fetchone()
        assert row is not None
        return row

    def _execute(self, query: str, **parameters: Any) -> psycopg.Cursor[Any]:
        return self._snapshot.execute(verify_queries[query], self._parameters | parameters)


def _size(bounds: Bounds) -> int:
    return sum(end - start for start, end in bounds.values())
