"""What a verification found: checks, facts, a verdict."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

SHOWN = 5  # offenders that a check names


@dataclass
class Check:
    """A claim, how many things it was asked of, how many break it, and the first that do, one line each."""

    name: str
    claim: str
    examined: int = 0
    violations: int = 0
    offenders: list[str] = field(default_factory=list)

    def fail(self, offender: str) -> None:
        """Count a violation, and name it where it is one of the first."""
        self.add(1, [offender])

    def add(self, violations: int, offenders: Iterable[str]) -> None:
        """Count violations, and name the first."""
        self.violations += violations
        self.offenders += [_line(text) for text in offenders][: SHOWN - len(self.offenders)]


@dataclass(frozen=True)
class Facts:
    """What was counted. Repeats are copies of an event beyond its first, each with one explanation."""

    orders: int
    ledger: int  # effects that the ledger has, where one is kept
    unpublished: int  # rows on their way to the topic
    unread: dict[str, int]  # group → effects on their way, of published events
    oldest_s: float  # of what is on its way
    moved_keys: int  # in two partitions since partitions were added
    snapshot_s: float  # how long the snapshot was held, and with it what VACUUM could have removed
    outbox_rows: int
    order_events: int  # of the rows: of the story's own types
    numbered: int  # of the rows: with a number within their aggregate
    watermark: int  # rows with smaller ids were dropped by retention; 0 where none was
    dropped_until: str | None  # orders up to then may have had dropped rows
    other_topics: int  # of the rows: for another topic, which is not read
    published: int
    published_here: int  # of those: for this topic
    set_aside: int
    republished: int  # somebody had them published again: their records may be behind later ones of their keys
    records: int
    events: int  # distinct ones
    repeats: int
    repeats_redriven: int  # put there again from the dead letters
    repeats_same_node: int  # its acknowledgement, or its commit, was lost
    repeats_other_node: int  # the first node died, or stood still, before its commit
    older_headers: int  # records without event id and number that their rows have: the version before publishes so
    other_types: int
    unreadable: int
    removed: int  # offsets before the topic's first records: deleted by retention
    removed_events: int  # published rows among those, which a group has processed
    dead_letters: dict[str, dict[str, int]]  # group → open, redriven, dropped
    dead_letters_repeated: int
    parked: int  # events that wait to be redriven
    lag: dict[str, dict[int, int]]  # group → partition → records that it has not committed

    @property
    def on_the_way(self) -> str:
        """What is not through yet and younger than the bound, in words; "" where nothing is."""
        moving = [f"{self.unpublished} unpublished"] * bool(self.unpublished)
        moving += [f"{count} unread by {group}" for group, count in self.unread.items() if count]
        return ", ".join([*moving, f"the oldest for {self.oldest_s:.1f} s"]) if moving else ""


@dataclass(frozen=True)
class Verification:
    """The checks, in the order of the chain, and the facts."""

    checks: list[Check]
    facts: Facts
    done: tuple[str, ...] = ()  # what the downstreams did with each order, in a word each

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return not any(check.violations for check in self.checks)

    def check(self, name: str) -> Check:
        """Find a check by its name."""
        return next(check for check in self.checks if check.name == name)

    @property
    def verdict(self) -> str:
        """The last line."""
        facts = self.facts
        if not self.ok:
            failed = ", ".join(f"{check.name} {check.violations}" for check in self.checks if check.violations)
            return f"verdict: FAILED: {failed}"
        if not facts.orders:
            return "verdict: nothing to verify: there is no order yet"
        remarks = [f"{facts.orders} orders", *_remarks(facts)]
        if moving := facts.on_the_way:
            return f"verdict: no promise is broken; on the way: {moving} ({', '.join(remarks)})"
        return f"verdict: every order was {_listed('published', *self.done)} exactly once ({', '.join(remarks)})"


def _remarks(facts: Facts) -> Iterator[str]:
    if facts.repeats:
        yield f"{facts.repeats} repeats in the topic"
    if unsettled := sum(fates.get("open", 0) for fates in facts.dead_letters.values()):
        yield f"{unsettled} open dead letters"
    if facts.parked:
        yield f"{facts.parked} parked events"
    if facts.watermark:
        yield f"outbox rows below {facts.watermark} were dropped"
    if facts.removed_events:
        yield f"{facts.removed_events} events no longer in the topic"


def _listed(*words: str) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _line(text: str) -> str:
    """Foreign text must not move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)
