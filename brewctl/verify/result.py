"""The result of a verification: checks, facts, a verdict."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

SHOWN = 5  # offenders that a check names, at most


@dataclass
class Check:
    """A claim, how many things were examined, how many break it, and the first of those, one line each."""

    name: str
    claim: str
    examined: int = 0
    violations: int = 0
    offenders: list[str] = field(default_factory=list)

    def fail(self, offender: str) -> None:
        """Count a violation, and keep its line if it is one of the first."""
        self.add(1, [offender])

    def add(self, violations: int, offenders: Iterable[str]) -> None:
        """Count violations, and keep the lines of the first."""
        self.violations += violations
        self.offenders += [_line(text) for text in offenders][: SHOWN - len(self.offenders)]


@dataclass(frozen=True)
class Facts:
    """The counters of a verification. A repeat is a copy of an event after its first record; each has one cause."""

    orders: int
    ledger: int  # effects in the ledger, where one is kept
    unpublished: int  # rows on their way to the topic
    unread: dict[str, int]  # group → published events that it has not processed yet
    oldest_s: float  # age of the oldest event on its way
    moved_keys: int  # keys in two partitions, since partitions were added
    snapshot_s: float  # how long the snapshot was held, and kept VACUUM from removing rows
    outbox_rows: int
    order_events: int  # rows of the story's own event types
    numbered: int  # rows with a number within their aggregate
    watermark: int  # retention dropped the rows with smaller ids; 0: none
    dropped_until: str | None  # rows of orders up to this time may have been dropped
    other_topics: int  # rows for another topic, which is not read
    published: int
    published_here: int  # of the published: for this topic
    set_aside: int
    republished: int  # rows published again by command: their records may follow later ones of the same key
    records: int
    events: int  # distinct events
    repeats: int
    repeats_redriven: int  # redriven from the dead letters
    repeats_same_node: int  # sent again by the same node: the acknowledgement, or the commit, was lost
    repeats_other_node: int  # sent by another node: the first died, or paused, before its commit
    older_headers: int  # records of the previous version, without the event id and number that their rows have
    other_types: int
    unreadable: int
    removed: int  # offsets before the topic's first records, which retention removed
    removed_events: int  # of the removed: events that a group has processed
    dead_letters: dict[str, dict[str, int]]  # group → open, redriven, dropped
    dead_letters_repeated: int
    parked: int  # parked events that wait to be redriven
    lag: dict[str, dict[int, int]]  # group → partition → records above the committed offset

    @property
    def on_the_way(self) -> str:
        """What is not through yet, but not late, in words; "" where nothing is."""
        moving = [f"{self.unpublished} unpublished"] * bool(self.unpublished)
        moving += [f"{count} unread by {group}" for group, count in self.unread.items() if count]
        return ", ".join([*moving, f"the oldest for {self.oldest_s:.1f} s"]) if moving else ""


@dataclass(frozen=True)
class Verification:
    """The checks, in the order of the chain, and the facts."""

    checks: list[Check]
    facts: Facts
    done: tuple[str, ...] = ()  # a verb for each downstream that has an effect of each order

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return not any(check.violations for check in self.checks)

    def check(self, name: str) -> Check:
        """Return the check of this name. Raises StopIteration where there is none."""
        return next(check for check in self.checks if check.name == name)

    @property
    def verdict(self) -> str:
        """The last line of the output."""
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
    """Replace unprintable characters, so that text of unknown origin can't control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
