"""The result of a chaos scenario."""

from dataclasses import dataclass, field


@dataclass
class CancelCounts:
    """The outcomes of a scenario's cancels."""

    acknowledged: int
    refused: int
    unknown: int
    not_cancelled: int  # acknowledged, but the order is not cancelled
    refused_cancelled: int  # refused, but the order is cancelled


@dataclass
class ScenarioResult:
    """The result of a scenario; of a skipped one only the reason."""

    scenario: str
    skipped: str = ""
    plan: list[str] = field(default_factory=list)
    acknowledged: int = 0
    failed: int = 0  # calls of the load with a long timeout
    unknown: int = 0  # calls without an answer; `written` of their orders are in the database
    written: int = 0
    lost: int = 0  # acknowledged orders that are missing, or differ from the acknowledgement
    refused: int = 0  # calls that must have written nothing, of both loads
    refused_written: int = 0  # refused calls whose order exists nevertheless
    repeats: int = 0  # records of an event after its first one
    missing: int = 0  # effects
    doubled: int = 0  # effects
    standstill_s: float = 0.0
    catch_up_s: float | None = None
    slowest_s: float = 0.0  # from the acceptance of an order to the last of its effects
    slowest_answer_s: float = 0.0  # from when an order was due, including retries
    findings: list[str] = field(default_factory=list)
    cancels: CancelCounts | None = None  # None: no orders were cancelled

    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def figures(self) -> list[tuple[str, str]]:
        """Return the figures for a report: names and formatted values."""
        catch_up = "-" if self.catch_up_s is None else f"{self.catch_up_s:.1f} s"
        figures = [
            ("acknowledged", str(self.acknowledged)),
            ("failed", str(self.failed)),
            ("unknown", f"{self.unknown} ({self.written} written)" if self.unknown else "0"),
            ("lost", str(self.lost)),
            ("refused", f"{self.refused} ({self.refused_written} written)"),
            ("repeats in the topic", str(self.repeats)),
            ("effects missing", str(self.missing)),
            ("effects doubled", str(self.doubled)),
            ("without progress", f"{self.standstill_s:.1f} s"),
            ("to catch up", catch_up),
            ("slowest order", f"{self.slowest_s:.1f} s"),
            ("slowest answer", f"{self.slowest_answer_s:.1f} s"),
        ]
        if self.cancels:
            cancels = self.cancels
            figures += [
                ("cancels acknowledged", f"{cancels.acknowledged} ({cancels.not_cancelled} not cancelled)"),
                ("cancels refused", f"{cancels.refused} ({cancels.refused_cancelled} cancelled)"),
                ("cancels unknown", str(cancels.unknown)),
            ]
        return figures
