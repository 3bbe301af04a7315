"""The whole chain: orders → outbox → topic → dedup rows and effects → committed offsets, and the dead letters.

It gives no false alarm while everything runs, because it reads the places of the flow in reverse order:

    committed offsets ─► snapshot of PostgreSQL ─► end of the dead letters ─► their settlements ─► end of the topic

So the effects of all records below the committed offsets are in the snapshot, and the records that dead letters and
their redrives name are before the end of the topic. A record whose row is younger than the snapshot is compared with
the tables as they are now. A row that has not come through is a fault if it is older than `late_s` seconds; a younger
one is counted as on its way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brewctl.config import Settings
from brewctl.delivery import database, events, registry
from brewctl.delivery.broker import PARTITIONS, Reader, Record, open_admin, open_reader
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import homes
from brewctl.errors import BrewError, UnreachableError
from brewctl.verify.letters import LetterCheck
from brewctl.verify.result import SHOWN, Check, Facts, Verification
from brewctl.verify.topic import Records
from brewctl.verify.workspace import Workspace, open_workspace

LATE_S = 60.0
STATEMENT_S = 900.0

Progress = Callable[[int, int], None]
Bounds = dict[int, tuple[int, int]]


def verify(
    settings: Settings, *, late_s: float = LATE_S, statement_s: float = STATEMENT_S, progress: Progress | None = None
) -> Verification:
    """Check the whole chain. `progress` is called with the number of records read so far, and of all.

    An event that is not through yet is a fault where it is older than `late_s` seconds. Memory does not grow with the
    number of orders: temporary tables of PostgreSQL hold them. Changes nothing. Raises UnreachableError, and BrewError
    where a table or a topic is missing, a statement takes longer than `statement_s` seconds, or a downstream's `done`
    query fails.
    """
    where = homes.of(settings)
    downstreams = [downstream for home in where for downstream in home.downstreams]
    with open_admin(settings) as admin:
        committed = {
            downstream.group: admin.committed(registry.kafka_group(settings, downstream), settings.topic)
            for downstream in downstreams
        }
    parameters = {
        "shown": SHOWN,
        "topic": settings.topic,
        "dead_letter_topic": settings.dead_letter_topic,
        "late_s": late_s,
    }
    with (
        open_reader(settings) as reader,
        database.connect(settings) as present,
        open_workspace(settings, where, parameters, statement_s=statement_s) as workspace,
    ):
        topic = _Topics(reader, progress or (lambda _done, _total: None))
        letters = LetterCheck(settings, workspace)
        topic.read(settings.dead_letter_topic, reader.bounds(settings.dead_letter_topic), letters.take)
        workspace.execute("settle_letters")
        bounds = reader.bounds(settings.topic)
        records = Records(settings, workspace, present, hashed=len(bounds) > PARTITIONS)
        bounds = topic.read(settings.topic, bounds, records.take)
        return _Chain(workspace, downstreams, committed, bounds).judge(records, letters)


class _Topics:
    """Reads topics whose first records retention may remove meanwhile."""

    def __init__(self, reader: Reader, progress: Progress) -> None:
        self._reader = reader
        self._progress = progress
        self._done = self._total = 0

    def read(self, topic: str, bounds: Bounds, take: Callable[[Sequence[Record]], None]) -> Bounds:
        """Pass the records within `bounds` to `take`. Returns the bounds, less the records that retention removed."""
        self._total += sum(end - start for start, end in bounds.values())
        firsts = {partition: start for partition, (start, _) in bounds.items()}
        rest = dict(bounds)
        while True:
            try:
                for batch in self._reader.read(topic, rest):
                    take(batch)
                    rest |= {record.partition: (record.offset + 1, bounds[record.partition][1]) for record in batch}
                    self._done += len(batch)
                    self._progress(self._done, self._total)
            except UnreachableError:
                raise
            except BrewError:
                removed = {partition: start for partition, (start, _) in self._reader.bounds(topic).items()}
                if not any(start < min(removed.get(at, 0), end) for at, (start, end) in rest.items()):
                    raise
                firsts = {at: max(first, min(removed.get(at, 0), bounds[at][1])) for at, first in firsts.items()}
                rest = {at: (min(max(start, firsts[at]), end), end) for at, (start, end) in rest.items()}
            else:
                return {partition: (firsts[partition], end) for partition, (_, end) in bounds.items()}


class _Chain:
    def __init__(
        self,
        workspace: Workspace,
        downstreams: Sequence[Downstream],
        committed: Mapping[str, Mapping[int, int]],
        bounds: Bounds,
    ) -> None:
        self._workspace = workspace
        self._downstreams = downstreams
        self._committed = committed
        self._bounds = bounds

    def judge(self, records: Records, letters: LetterCheck) -> Verification:
        """Compare all that the workspace holds, and return the verification."""
        self._note_offsets()
        self._workspace.execute("analyze")
        for downstream in self._downstreams:
            if _of_every_order(downstream):
                self._workspace.execute("fill_gap", consumer=downstream.group)
        facts = self._facts(records)
        checks = [*self._outbox_checks(facts), *records.checks, *self._topic_checks(facts)]
        for downstream in self._downstreams:
            checks += self._group_checks(downstream, facts)
        self._judge(letters.check, "dead_letters")
        verbs = tuple(downstream.did for downstream in self._downstreams if _of_every_order(downstream))
        return Verification([*checks, letters.check], facts, verbs)

    def _note_offsets(self) -> None:
        firsts, nexts = zip(*self._bounds.values(), strict=True)
        self._workspace.execute("fill_edge", partitions=list(self._bounds), firsts=list(firsts), nexts=list(nexts))
        for group, offsets in self._committed.items():
            places = {"partitions": list(offsets), "nexts": list(offsets.values())}
            self._workspace.execute("fill_position", consumer=group, **places)

    def _outbox_checks(self, facts: Facts) -> list[Check]:
        event_per_order = Check("event-per-order", "each change of an order has one event", facts.orders)
        self._judge(event_per_order, "event_per_order")
        return [
            self._judge(event_per_order, "more_than_dropped"),
            self._judge(
                Check("order-per-event", "every event of an order has its order", facts.order_events), "order_per_event"
            ),
            self._judge(Check("numbered", "the events of a key are 1, 2, 3 …", facts.numbered), "numbered"),
            self._judge(Check("unpublished", "every outbox row is published", facts.outbox_rows), "unpublished"),
            self._judge(Check("lost", "every published row is in the topic", facts.published_here), "lost"),
        ]

    def _topic_checks(self, facts: Facts) -> list[Check]:
        return [
            self._judge(
                Check("split-keys", "a key stays in one partition", facts.events), "split_keys", **self._layout
            ),
            self._judge(Check("out-of-order", "each key comes in the outbox's order", facts.events), "out_of_order"),
        ]

    @property
    def _layout(self) -> dict[str, int]:
        count = len(self._bounds)
        return {"partitions": count, "first_partitions": min(count, PARTITIONS)}

    def _group_checks(self, downstream: Downstream, facts: Facts) -> list[Check]:
        group = downstream.group
        effect = f"{group} effect"
        counted = self._workspace.row("count_group", consumer=group)
        effects, processed = counted["effects"], counted["processed"]
        of_effects = [
            ("missing", f"every order has its {effect}", facts.orders),
            ("doubled", f"no order has a second {effect}", effects),
            ("orphans", f"no {effect} is without its order", effects),
        ]
        asked = [
            *(of_effects if _of_every_order(downstream) else ()),
            ("dedup", f"each {effect} has its dedup row, and each dedup row its event", processed),
            *(
                [("state", f"each {effect} shows its order's status", effects)]
                if group in self._workspace.states
                else ()
            ),
            ("sequence", f"{group} takes the events of a key in order", processed),
            ("overtaken", f"{group} takes no event of a key that has a parked one", processed),
            ("removed", f"no event was removed from the topic before {group} had it", facts.published_here),
            ("offsets", "no offset is ahead of durable work", counted["behind"]),
        ]
        parameters = {"consumer": group, "effect": effect, "shows": _of_every_order(downstream)}
        return [
            self._judge(Check(f"{group}-{name}", claim, examined), name, **parameters)
            for name, claim, examined in asked
        ]

    def _judge(self, check: Check, query: str, **parameters: Any) -> Check:
        rows = self._workspace.execute(query, **parameters).fetchall()
        if rows:
            check.add(rows[0][0], [text for _, text in rows])
        return check

    def _facts(self, records: Records) -> Facts:
        letters: dict[str, dict[str, int]] = {}
        for group, outcome, count in self._workspace.execute("count_letters"):
            letters.setdefault(group, {"open": 0, "redriven": 0, "dropped": 0})[outcome] = count
        lag = {
            group: {
                partition: max(0, end - max(start, offsets.get(partition, 0)))
                for partition, (start, end) in self._bounds.items()
            }
            for group, offsets in self._committed.items()
        }
        row = self._workspace.row
        return Facts(
            **row("count_outbox"),
            **row("count_on_the_way"),
            unread=dict.fromkeys(self._committed, 0) | dict(self._workspace.execute("count_unread").fetchall()),
            **row("count_records"),
            older_headers=records.older_headers,
            **row("count_repeats"),
            **row("count_moved", **self._layout),
            **row("count_removed_events"),
            **row("count_repeated_letters"),
            **row("count_parked"),
            dead_letters=letters,
            lag=lag,
            snapshot_s=round(self._workspace.held_s, 3),
        )


def _of_every_order(downstream: Downstream) -> bool:
    """Say whether each order must have an effect of this downstream that its `done` query can find."""
    return bool(downstream.done) and events.ORDER_CREATED in downstream.events
