"""Reads from PostgreSQL, the homes of downstreams and Kafka whether partitions may be dropped. Changes nothing.

Groups' committed offsets are read before the topic's, and those before a partition's rows: a change in between can only
make a partition look as if it had to stay.
"""

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql
from psycopg.rows import class_row

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Admin, open_admin
from brewctl.delivery.database import BoundedConnection, table_locks
from brewctl.delivery.inbox.dead_letter import Letter
from brewctl.delivery.repair.dead_letters import Filter, open_dead_letters
from brewctl.delivery.retention.plan import (
    Content,
    GroupOffsets,
    Known,
    PartitionVerdict,
    Reason,
    TablePartition,
    Topic,
    judge,
    misplaced,
)
from brewctl.delivery.schema import homes
from brewctl.delivery.schema.homes import Home
from brewctl.delivery.topics import keeping
from brewctl.errors import BrewError, UnreachableError
from brewctl.sql import queries, retention_queries

_PAGE = 20_000  # rows whose dedup rows are looked up at a time
_WRITERS_S = 1.0  # how long to wait for transactions that may still write to a full partition


@dataclass(frozen=True)
class Buried:
    """A dead letter. It keeps a partition while it is open, or while the topic has its redriven copy."""

    outbox_id: int
    group: str
    what: str  # for a message; empty where the letter keeps no partition
    letter: str
    given_up: bool  # it is open or dropped: its group need not have processed the event


def partitions(connection: BoundedConnection, table: str) -> list[TablePartition]:
    """Return a table's partitions, in their order."""
    with connection.cursor(row_factory=class_row(TablePartition)) as cursor:
        return cursor.execute(retention_queries["partitions"], {"table": table}).fetchall()


def sequence(connection: BoundedConnection) -> int:
    """Return the last outbox id that the sequence has given out."""
    (last,) = connection.execute(retention_queries["sequence"]).fetchone() or (0,)
    return int(last)


def _rows(partition: TablePartition, *, detached: bool) -> sql.Composable:
    """Return the FROM item for a partition's rows. An attached one is read by its ids, because a reader may do that."""
    if detached:
        return sql.Identifier(partition.name)
    low = sql.SQL("") if partition.low is None else sql.SQL("id >= {} AND ").format(sql.Literal(partition.low))
    return sql.SQL("(SELECT * FROM outbox WHERE {}id < {}) AS part").format(low, sql.Literal(partition.high))


def contents(connection: BoundedConnection, partition: TablePartition, *, detached: bool = False) -> list[Content]:
    """Return a summary of all rows of an outbox partition. Reads the whole partition, for at most schema_s."""
    query = sql.SQL(retention_queries["contents"]).format(partition=_rows(partition, detached=detached))
    with table_locks.bounded(connection), connection.cursor(row_factory=class_row(Content)) as cursor:
        return cursor.execute(query).fetchall()


def last_order(connection: BoundedConnection, partition: str) -> datetime | None:
    """Return the time of the newest order among a partition's last rows, by the clock of its node."""
    query = sql.SQL(retention_queries["last_order"]).format(partition=sql.Identifier(partition))
    row = connection.execute(query).fetchone()
    return row[0] if row else None


class Evidence:
    """The state of Kafka and of the homes at one moment, and what it says about partitions."""

    def __init__(
        self,
        settings: Settings,
        connection: BoundedConnection,
        admin: Admin,
        *,
        gone: Collection[str] = (),
        lost_to: Collection[str] = (),
    ) -> None:
        """Read the groups' and the topic's offsets from Kafka."""
        self._settings = settings
        self._connection = connection
        self._admin = admin
        self._gone = frozenset(gone)
        self._lost_to = frozenset(lost_to)
        self._homes = homes.of(settings)
        self._groups = [
            GroupOffsets(name := registry.kafka_group(settings, each), each.group, frozenset(each.events),
                  admin.committed(name, settings.topic))
            for each in registry.configured(settings)
        ]  # fmt: skip
        if unknown := self._lost_to - {each.consumer for each in self._groups}:
            raise BrewError(f"no configured downstream has the group {min(unknown)}", hint="see `brewctl groups`")
        self._known = {settings.topic: self._topic(settings.topic)}
        self._letters: list[Buried] | None = None
        self._newest = [Content(name, "", None, rows) for name, rows in connection.execute(retention_queries["newest"])]

    def verdicts(self, *, whole: bool = True) -> Iterator[PartitionVerdict]:
        """Yield verdicts on the outbox's partitions, from the oldest to the first that must stay.

        `whole`: also yield the partitions behind that one, which are not looked into.
        """
        stays = False
        last = sequence(self._connection)
        for partition in partitions(self._connection, "outbox"):
            if stays:
                if whole:
                    yield PartitionVerdict(partition, looked=False)
                continue
            verdict = self.judged(partition, last)
            stays = not verdict.may_go
            yield verdict

    def judged(self, partition: TablePartition, last: int) -> PartitionVerdict:
        """Return the verdict on a partition. `last`: the last outbox id that was given out."""
        if partition.high > last:
            stays = Reason("rows are still written to it", "nothing")
            return PartitionVerdict(partition, contents(self._connection, partition), [stays])
        if writer := self._writer(partition):
            return PartitionVerdict(partition, contents(self._connection, partition), [writer])
        return self.of_rows(partition)

    def of_rows(self, partition: TablePartition, *, detached: bool = False) -> PartitionVerdict:
        """Return the verdict on a partition by its rows. No transaction may write to it any more."""
        found = contents(self._connection, partition, detached=detached)
        verdict = PartitionVerdict(partition, found)
        if found and (reason := misplaced([*found, *self._newest], self._settings.topic)):
            verdict.reasons.append(reason)
            return verdict
        for name in {each.topic for each in found} - self._known.keys():
            self._known[name] = self._topic(name)
        now = self._connection.execute(queries["now"]).fetchone()
        assert now is not None
        known = Known(self._settings.topic, self._known, self._groups, now[0], self._gone)
        verdict.reasons += judge(found, known)
        # The costlier checks run only where the cheaper ones found no reason to keep the partition.
        if not verdict.reasons:
            verdict.reasons += self._parked(partition)
        if not verdict.reasons:
            verdict.reasons += self._dead(partition)
        if not verdict.reasons:
            verdict.reasons += self._lacking(partition, detached=detached)
        return verdict

    def _topic(self, name: str) -> Topic:
        if name not in self._admin.topics():
            return Topic(name, there=False)
        kept = keeping.look(self._admin, name)
        return Topic(name, ends=self._admin.ends(name), keeps_ms=kept.keep_ms, compacted=kept.compacts)

    def _writer(self, partition: TablePartition) -> Reason | None:
        """Wait for transactions that may hold an id of this full partition; return the reason where one goes on."""
        asked = {"partition": partition.name}

        def writing() -> dict[str, tuple[str, int | None, str]]:
            return {row[0]: row for row in self._connection.execute(retention_queries["writers"], asked)}

        staying = writing()
        until, between = time.monotonic() + _WRITERS_S, table_locks.pauses()
        while staying and time.monotonic() < until:
            between.pause()
            found = writing()
            staying = {name: row for name, row in found.items() if name in staying}
        if not staying:
            return None
        _, pid, gid = next(iter(staying.values()))
        whose = f"prepared transaction {gid!r}" if gid else f"a transaction of session {pid}"
        return Reason(f"{whose} may still write to it", "end it, or wait for it: `brewctl doctor` names old ones")

    def _parked(self, partition: TablePartition) -> Iterator[Reason]:
        asked = {"low": partition.low or 0, "high": partition.high}
        for home in self._homes:
            try:
                with homes.connect(home, self._connection, name="retention") as connection:
                    for consumer, first, count in connection.execute(retention_queries["parked"], asked).fetchall():
                        text = f"{count} parked events of {consumer} wait to be redriven, the first is outbox {first}"
                        yield Reason(text, f"`brewctl dlq list --group {consumer}`, then redrive or drop them")
                    for consumer, first, count in connection.execute(retention_queries["waiting"], asked).fetchall():
                        text = f"{count} events of {consumer} wait for their handler, the first is outbox {first}"
                        yield Reason(text, f"run nodes of {consumer}: `brewctl doctor` says why they wait")
            except UnreachableError as error:
                # Whether events are parked or were processed there is not known.
                yield Reason(f"a database is away: {error.message}", error.hint)

    def _dead(self, partition: TablePartition) -> Iterator[Reason]:
        low = partition.low or 0
        keeping = [each for each in self._buried() if each.what and low <= each.outbox_id < partition.high]
        if keeping:
            more = f", and {len(keeping) - 1} more" if len(keeping) > 1 else ""
            todo = f"`brewctl dlq redrive {keeping[0].letter}`, or drop it" if keeping[0].what.startswith("open") else (
                "nothing: kafka removes it by its age"
            )  # fmt: skip
            yield Reason(f"{keeping[0].what} of outbox {keeping[0].outbox_id}{more}", todo)

    def _buried(self) -> Sequence[Buried]:
        if self._letters is None:
            if self._settings.dead_letter_topic not in self._admin.topics():
                hint = "run `brewctl topic create`"
                raise BrewError(f"kafka has no topic {self._settings.dead_letter_topic}", hint=hint)
            with open_dead_letters(self._settings, self._connection) as letters:
                self._letters = [each for each in map(self._of_letter, letters.find(Filter(), settled=True)) if each]
        return self._letters

    def _of_letter(self, letter: Letter) -> Buried | None:
        named = dict(letter.headers).get("outbox-id", b"")
        if not (named.isdigit() and len(named) <= 18):  # noqa: PLR2004 - digits of a bigint
            return None
        what = "" if letter.outcome else f"open dead letter {letter.id}"
        if place := letter.new_place:
            topic = self._known[self._settings.topic]
            if place.offset >= topic.ends.get(place.partition, (0, 0))[0]:
                what = f"the topic still has a redriven copy, {place.partition}@{place.offset},"
        return Buried(int(named), letter.group, what, letter.id, letter.outcome != "redriven")

    def _lacking(self, partition: TablePartition, *, detached: bool) -> Iterator[Reason]:
        """Compare the rows with each group's dedup rows, as committed offsets don't show events that a group lost."""
        lacking: dict[str, list[int]] = {each.consumer: [] for each in self._groups}
        page = sql.SQL(retention_queries["page"]).format(partition=_rows(partition, detached=detached))
        after = -1
        given_up = {(each.group, each.outbox_id) for each in self._buried() if each.given_up}
        with contextlib.ExitStack() as stack:
            connections = [
                (home, stack.enter_context(homes.connect(home, self._connection, name="retention")))
                for home in self._homes
                if home.groups
            ]
            while True:
                asked = {"after": after, "topic": self._settings.topic, "limit": _PAGE}
                rows = self._connection.execute(page, asked).fetchall()
                if not rows:
                    break
                first, after = rows[0][0], rows[-1][0]
                for home, connection in connections:
                    wanted = {"groups": home.groups, "first": first, "last": after}
                    done = set(connection.execute(retention_queries["done"], wanted))
                    for group in self._of(home):
                        lacking[group.consumer] += [
                            row for row, kind in rows
                            if kind in group.types
                            and (group.consumer, row) not in done and (group.name, row) not in given_up
                        ]  # fmt: skip
        for group in self._groups:
            if (ids := lacking[group.consumer]) and group.consumer not in self._lost_to:
                count = "1 of its rows was" if len(ids) == 1 else f"{len(ids)} of its rows were"
                text = f"{count} never processed by group {group.name}, the first is outbox {ids[0]}"
                todo = (
                    f"`brewctl outbox republish --missing`, or give them up for this group: --lost-to {group.consumer}"
                )
                yield Reason(text, todo, refused=True)

    def _of(self, home: Home) -> list[GroupOffsets]:
        return [each for each in self._groups if each.consumer in home.groups]


@contextlib.contextmanager
def open_look(
    settings: Settings, connection: BoundedConnection, *, gone: Collection[str] = (), lost_to: Collection[str] = ()
) -> Iterator[Evidence]:
    """The evidence, read from Kafka now. Raises UnreachableError; BrewError where a topic or a right is missing."""
    with open_admin(settings) as admin:
        yield Evidence(settings, connection, admin, gone=gone, lost_to=lost_to)
