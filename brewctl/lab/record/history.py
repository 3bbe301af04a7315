"""What a run of the lab records while it plays, to be judged and shown afterwards.

Every time is in seconds since the act began.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FlowSample:
    """One look at the counters; `effects` of each downstream, by the name of its counter."""

    at_s: float
    orders: int
    outbox_unpublished: int
    effects: Mapping[str, int] = field(default_factory=dict)
    parked: int = 0  # events

    def value(self, counter: str) -> int:
        """Return the counter of this name: `orders`, or a downstream's."""
        return self.orders if counter == "orders" else self.effects.get(counter, 0)


@dataclass(frozen=True)
class Ownership:
    """The owner of each partition of a group from `at_s` on, by Kafka. "", or a partition left out: none."""

    at_s: float
    group: str
    owners: Mapping[int, str]


@dataclass(frozen=True)
class FaultSpan:
    """What was broken on purpose. One that ends when it starts is an instant."""

    start_s: float
    end_s: float  # math.inf: never ended
    label: str
    # The nodes that could not work meanwhile: the partitions that they still own make no progress.
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A moment that explains the curves, and is no fault: a rebalance."""

    at_s: float
    label: str


@dataclass(frozen=True)
class Claim:
    """What was claimed of a run, whether it holds, and if not, what was found instead."""

    text: str
    holds: bool
    found: str = ""


@dataclass(frozen=True)
class ActEvent:
    """A line of the log."""

    at_s: float
    text: str


@dataclass
class Act:
    """One scenario of chaos, or the demo."""

    name: str
    title: str
    ok: bool = False
    samples: list[FlowSample] = field(default_factory=list)
    ownerships: list[Ownership] = field(default_factory=list)
    faults: list[FaultSpan] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    events: list[ActEvent] = field(default_factory=list)
    # What was measured, by name, as it is to be read: ("acknowledged", "1200"), ("without progress", "7.9 s").
    figures: list[tuple[str, str]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    # What failed, and the first offenders.
    findings: list[str] = field(default_factory=list)
    # Why it did not run.
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """Say in a word how it ended: ok, failed or skipped."""
        if self.skipped:
            return "skipped"
        return "ok" if self.ok else "failed"

    @property
    def duration_s(self) -> float:
        """The time of the last thing that is recorded; 0 where nothing is."""
        times = [
            *(sample.at_s for sample in self.samples),
            *(ownership.at_s for ownership in self.ownerships),
            *(end_s for fault in self.faults for end_s in (fault.start_s, fault.end_s)),
            *(mark.at_s for mark in self.marks),
            *(event.at_s for event in self.events),
        ]
        return max((at_s for at_s in times if math.isfinite(at_s)), default=0.0)
