"""What chaos finds fault with beside the checks of `verify`: a run that could not have shown what it is for."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from brewctl.config import Settings
from brewctl.lab import chaos
from brewctl.lab.history import Act
from brewctl.lab.result import Result
from brewctl.lab.stage import Stage
from brewctl.lab.watch import Watch
from brewctl.verify import Check, Facts, Verification

NUMBERS = {field.name: 0 for field in dataclasses.fields(Facts) if field.type in {int, float}}
FACTS = Facts(**NUMBERS, dead_letters={}, lag={}, unread={})


def judged(monkeypatch: pytest.MonkeyPatch, *, ledger: int, **result: int) -> list[str]:
    """What is found where there are two effects of each group, and so many rows in the ledger."""
    checks = [
        Check(f"{group}-{name}", "no order has a second one", 2)
        for group in ("inventory", "notifications")
        for name in ("missing", "doubled")
    ]
    verification = Verification(checks, dataclasses.replace(FACTS, ledger=ledger))
    monkeypatch.setattr(chaos, "verify", lambda _settings, *, late_s: verification if late_s == 0 else None)
    plan = chaos.Plan(orders=2, rate=1.0, seed=1, session_s=6.0)
    came_to = dataclasses.replace(Result("any", acknowledged=2, refused=1), **result)  # type: ignore[arg-type]
    stage = cast("Stage", SimpleNamespace())
    play = chaos._Play(
        Settings(), stage, plan, came_to, Act("any", "any"), Watch(Settings()), lambda _at_s, _text: None
    )
    play._judge([])
    return came_to.findings


def test_a_run_that_shows_everything_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch, ledger=4) == []


@pytest.mark.parametrize(
    ("ledger", "result", "says"),
    [
        (3, {}, "the ledger has 3 of 4 effects"),
        (4, {"refused": 0}, "no call was refused"),
        (4, {"acknowledged": 0}, "no order was acknowledged"),
    ],
)
def test_a_run_that_shows_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch, ledger: int, result: dict[str, int], says: str
) -> None:
    (finding,) = judged(monkeypatch, ledger=ledger, **result)
    assert finding.startswith(says)
