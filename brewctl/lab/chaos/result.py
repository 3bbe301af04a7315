"""What a scenario of chaos came to."""

from dataclasses import dataclass, field


@dataclass
class CancelCounts:
    """What the cancels of a scenario came to."""

    acknowledged: int
    refused: int
    unknown: int
    not_cancelled: int  # acknowledged, and the order is not cancelled
    refused_cancelled: int  # refused, and the order is cancelled


@dataclass
class ScenarioResult:
    """What a scenario came to. Of a skipped one just the reason."""

    scenario: str
    skipped: str = ""
    plan: list[str] = field(default_factory=list)
    acknowledged: int = 0
    failed: int = 0  # of clients with patience
    unknown: int = 0  # to the client; `written` of them are in the database
    written: int = 0
    lost: int = 0  # acknowledged, and not there or not as acknowledged
    refused: int = 0  # calls that surely wrote nothing, those of hasty clients too
    refused_written: int = 0  # of those: written all the same
    repeats: int = 0  # records of the topic beyond the first of each event
    missing: int = 0  # effects
    doubled: int = 0  # effects
    standstill_s: float = 0.0
    catch_up_s: float | None = None
    slowest_s: float = 0.0  # from the acceptance of an order to the last of its effects
    slowest_answer_s: float = 0.0  # from the time when an order should have been sent, with all retries
    findings: list[str] = field(default_factory=list)
    cancels: CancelCounts | None = None  # where orders were cancelled

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def figures(self) -> list[tuple[str, str]]:
        """Name the figures, for a report."""
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
