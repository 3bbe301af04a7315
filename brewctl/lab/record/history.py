"""The data recorded during a demo or a chaos scenario, for its verdict and report.

All times are in seconds since the act began.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FlowSample:
    """The counters at one moment; `effects` of each downstream, by the name of its counter."""

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
    """The owner of each partition of a group from `at_s` on; none if it is "" or the partition is left out."""

    at_s: float
    group: str
    owners: Mapping[int, str]


@dataclass(frozen=True)
class FaultSpan:
    """A fault that was injected. It is an instant if it ends when it starts."""

    start_s: float
    end_s: float  # math.inf: it never ended
    label: str
    # Nodes that could not work meanwhile: partitions that they still own make no progress.
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A moment that explains the curves but is no fault, such as a rebalance."""

    at_s: float
    label: str


@dataclass(frozen=True)
class Claim:
    """A claim about a run, whether it holds, and if not, what was found instead."""

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
    # Names and formatted values of measurements: ("acknowledged", "1200"), ("without progress", "7.9 s").
    figures: list[tuple[str, str]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    # Failures, with the first offenders.
    findings: list[str] = field(default_factory=list)
    # The reason why it was skipped, if so.
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """How it ended: ok, failed or skipped."""
        if self.skipped:
            return "skipped"
        return "ok" if self.ok else "failed"

    @property
    def duration_s(self) -> float:
        """The last time that was recorded; 0 if there is none."""
        times = [
            *(sample.at_s for sample in self.samples),
            *(ownership.at_s for ownership in self.ownerships),
            *(end_s for fault in self.faults for end_s in (fault.start_s, fault.end_s)),
            *(mark.at_s for mark in self.marks),
            *(event.at_s for event in self.events),
        ]
        return max((at_s for at_s in times if math.isfinite(at_s)), default=0.0)
