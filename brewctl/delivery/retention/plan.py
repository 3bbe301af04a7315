"""Decides which partitions of the outbox may be dropped, from what `look` has read. No I/O here.

A row may be dropped when it is published, its record is no longer in its topic, and every group has committed an offset
beyond it. Partitions are dropped in their order, so that one id, the watermark, says which rows are gone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from brewctl.delivery.topics.keeping import FOREVER_MS

_SET_IT = "say how long it keeps them: `brewctl topic keep 7d`"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a partition must stay, and what to do about it. `refused`: a fault, for which no partition may be dropped."""

    text: str
    todo: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """A count of a partition's rows with the same topic, event type and Kafka partition."""

    topic: str
    type: str
    place: int | None  # the Kafka partition, where it is known
    rows: int
    unpublished: int = 0
    set_aside: int = 0
    unplaced: int = 0  # published by an older version, which did not note the offset
    last_offset: int | None = None
    last_published: datetime | None = None
    oldest: datetime | None = None
    newest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now."""

    name: str
    there: bool = True
    ends: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # by partition, the first offset and the next one
    keeps_ms: int = FOREVER_MS
    compacted: bool = False


@dataclass(frozen=True, slots=True)
class GroupOffsets:
    """A consumer group of the story's topic."""

    name: str  # in Kafka
    consumer: str  # in the dedup rows
    types: frozenset[str]
    committed: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Known:
    """The state of Kafka. `gone`: topics that the user says are gone for good."""

    topic: str  # the story's
    topics: Mapping[str, Topic]
    groups: Sequence[GroupOffsets]
    now: datetime
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TablePartition:
    """A partition of a table, with ids from `low` to below `high`; the first partition has `low` None."""

    name: str
    low: int | None
    high: int
    bytes: int = 0
    estimate: int = 0  # PostgreSQL's, of its rows
    pending: bool = False  # whether a DETACH has begun and not finished


@dataclass
class PartitionVerdict:
    """The reasons to keep a partition; without one it may be dropped."""

    partition: TablePartition
    contents: Sequence[Content] = ()
    reasons: list[Reason] = field(default_factory=list)
    looked: bool = True  # False: it was not read, because a partition before it must stay

    @property
    def may_go(self) -> bool:
        """Whether the partition may be dropped now."""
        return self.looked and not self.reasons

    @property
    def rows(self) -> int:
        """How many rows it has; PostgreSQL's estimate where it was not read."""
        return sum(each.rows for each in self.contents) if self.looked else max(0, self.partition.estimate)

    @property
    def created(self) -> int:
        """How many order.created it has."""
        return sum(each.rows for each in self.contents if each.type == "order.created")

    @property
    def oldest(self) -> datetime | None:
        """When its first row was written."""
        return min((each.oldest for each in self.contents if each.oldest), default=None)

    @property
    def newest(self) -> datetime | None:
        """When its last row was written."""
        return max((each.newest for each in self.contents if each.newest), default=None)


def judge(contents: Sequence[Content], known: Known) -> list[Reason]:
    """Return the reasons to keep rows, by their contents and the state of Kafka; none where they may be dropped."""
    reasons = [*_unpublished(contents)]
    for name in sorted({each.topic for each in contents}):
        of_topic = [each for each in contents if each.topic == name]
        if name in known.gone:
            continue
        if not (topic := known.topics[name]).there:
            todo = f"create it, or say that it is gone for good: --topic-gone {name}"
            reasons.append(Reason(f"topic {name} of its rows is not there", todo, refused=name == known.topic))
            continue
        reasons += _records(of_topic, topic)
        reasons += _unplaced(of_topic, topic, known.now)
        if name == known.topic:
            for group in known.groups:
                reasons += _group(of_topic, topic, group)
    # Faults first, then reasons that pass by themselves.
    return sorted(reasons, key=lambda reason: not reason.refused)


def _unpublished(contents: Sequence[Content]) -> Iterator[Reason]:
    if set_aside := sum(each.set_aside for each in contents):
        yield Reason(f"{_rows(set_aside)} set aside", "see `brewctl outbox list --failed`")
    if waiting := sum(each.unpublished for each in contents) - set_aside:
        yield Reason(f"{_rows(waiting)} not published yet", "start a publisher: `brewctl start order`")


def _last(contents: Sequence[Content]) -> dict[int, int]:
    """Return the last offset that these rows have in each partition of their topic."""
    last: dict[int, int] = {}
    for each in contents:
        if each.place is not None and each.last_offset is not None:
            last[each.place] = max(last.get(each.place, -1), each.last_offset)
    return last


def _records(contents: Sequence[Content], topic: Topic) -> Iterator[Reason]:
    last = _last(contents)
    anew = [at for at, offset in last.items() if at not in topic.ends or offset >= topic.ends[at][1]]
    if anew:
        at = min(anew)
        ends = f"ends at {topic.ends[at][1]}" if at in topic.ends else "is not there"
        text = f"its last record was {at}@{last[at]} in topic {topic.name}, whose partition {at} {ends}"
        todo = "the topic was made anew, or is another one: `brewctl outbox republish --missing` says what groups lack"
        yield Reason(text, todo, refused=True)
        return
    still = {at: topic.ends[at][0] for at, offset in last.items() if topic.ends[at][0] <= offset}
    if not still:
        return
    at = min(still)
    text = f"topic {topic.name} still has records of it, up to {at}@{last[at]}; the first one there is {at}@{still[at]}"
    yield Reason(text, _when_gone(topic))


def _when_gone(topic: Topic) -> str:
    if topic.compacted:
        return "the topic is compacted (cleanup.policy): its records are never removed by their age"
    if topic.keeps_ms == FOREVER_MS:
        return f"the topic keeps its records for ever (retention.ms=-1): {_SET_IT}"
    return f"nothing: kafka removes them when they are {_span(topic.keeps_ms)} old (retention.ms)"


def _unplaced(contents: Sequence[Content], topic: Topic, now: datetime) -> Iterator[Reason]:
    unplaced = [each for each in contents if each.unplaced]
    if not unplaced:
        return
    count = sum(each.unplaced for each in unplaced)
    what = f"{_rows(count)} published by an older version, which did not note where"
    last = max((each.last_published for each in unplaced if each.last_published), default=now)
    if topic.keeps_ms == FOREVER_MS or topic.compacted:
        yield Reason(f"{what}; topic {topic.name} keeps records for ever", _SET_IT)
    elif now - last <= timedelta(milliseconds=topic.keeps_ms):
        text = f"{what}; topic {topic.name} keeps records for {_span(topic.keeps_ms)}"
        yield Reason(text, "nothing: they may go when they are older than that")


def _group(contents: Sequence[Content], topic: Topic, group: GroupOffsets) -> Iterator[Reason]:
    last = _last([each for each in contents if each.type in group.types])
    resume = f"start it: `brewctl start {group.consumer}`; see `brewctl groups`"
    republish = f"`brewctl outbox republish --missing` publishes what {group.name} lacks"
    for at, offset in sorted(last.items()):
        first = topic.ends.get(at, (0, 0))[0]
        committed = group.committed.get(at)
        if committed is None:
            yield Reason(f"group {group.name} has never committed in partition {at} of the topic", resume)
            return
        if committed < first:
            # Kafka has removed records that the group has not read. Only the rows still show which events it lacks.
            where = f"it comes next to {at}@{committed}, and the first record is {at}@{first}"
            yield Reason(f"group {group.name} was overtaken: {where}", republish, refused=True)
            return
        if committed <= offset:
            yield Reason(
                f"group {group.name} comes next to {at}@{committed}, and its last record is {at}@{offset}", resume
            )
            return


def stray(partition: TablePartition) -> PartitionVerdict:
    """Return the verdict on a dedup partition whose ids are far beyond the outbox's: why it is there, when it goes."""
    whose = "its ids go far beyond the outbox's: they are another outbox's, or rubbish"
    todo = f"nothing; where they are rubbish, in psql: DROP TABLE {partition.name}"
    if partition.low is None:  # it also has rows of this outbox, from before the table had partitions
        todo = "nothing; to make it smaller, delete its rows with an outbox_id below the watermark in psql"
    reason = Reason(f"{whose}; it goes once the watermark has come to {partition.high}", todo)
    return PartitionVerdict(partition, reasons=[reason], looked=False)


def misplaced(newest: Sequence[Content], topic: str) -> Reason | None:
    """Return a reason where none of the `newest` rows is for this topic: it is another topic's outbox."""
    if not newest or any(each.topic == topic for each in newest):
        return None
    others = ", ".join(sorted({each.topic for each in newest}))
    text = f"no row of the outbox is for topic {topic}: its rows are for {others}"
    return Reason(text, "say the right one: --topic, or BREW_TOPIC", refused=True)


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def _span(milliseconds: int) -> str:
    seconds = milliseconds / 1000
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:g} {name}" if seconds % length == 0 else f"{seconds / length:.1f} {name}"
    return f"{seconds:g} s"
