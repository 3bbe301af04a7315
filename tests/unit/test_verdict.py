"""What chaos finds fault with beside the checks of `verify`: a run that could not have shown what it is for."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from brewctl.cli import chaos as command
from brewctl.config import Settings
from brewctl.lab.chaos import chaos
from brewctl.lab.chaos.result import CancelCounts, ScenarioResult
from brewctl.lab.chaos.stage import Stage
from brewctl.lab.record.history import Act
from brewctl.lab.record.watch import FlowWatch
from brewctl.verify import Check, Facts, Verification

NUMBERS = {field.name: 0 for field in dataclasses.fields(Facts) if field.type in {int, float}}
FACTS = Facts(**NUMBERS, dropped_until=None, dead_letters={}, lag={}, unread={})


def judged(monkeypatch: pytest.MonkeyPatch, *, ledger: int, **result: object) -> list[str]:
    """What is found where there are two effects of each group, and so many rows in the ledger."""
    checks = [
        Check(f"{group}-{name}", "no order has a second one", 2)
        for group in ("inventory", "notifications")
        for name in ("missing", "doubled")
    ]
    verification = Verification(checks, dataclasses.replace(FACTS, ledger=ledger))
    monkeypatch.setattr(chaos, "verify", lambda _settings, *, late_s: verification if late_s == 0 else None)
    plan = chaos.Plan(orders=2, rate=1.0, seed=1, session_s=6.0)
    came_to = dataclasses.replace(ScenarioResult("any", acknowledged=2, refused=1), **result)  # type: ignore[arg-type]
    stage = cast("Stage", SimpleNamespace())
    play = chaos._ScenarioRun(
        Settings(), stage, plan, came_to, Act("any", "any"), FlowWatch(Settings()), lambda _at_s, _text: None
    )
    play._judge([])
    return came_to.findings


def test_a_run_that_shows_everything_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch, ledger=4) == []
    assert judged(monkeypatch, ledger=4, cancels=CancelCounts(1, 1, 1, 0, 0)) == []


@pytest.mark.parametrize(
    ("ledger", "result", "says"),
    [
        (3, {}, "the ledger has 3 of 4 effects"),
        (4, {"refused": 0}, "no call was refused"),
        (4, {"acknowledged": 0}, "no order was acknowledged"),
        (4, {"cancels": CancelCounts(0, 1, 0, 0, 0)}, "no cancel was acknowledged"),
        (4, {"cancels": CancelCounts(1, 0, 0, 0, 0)}, "no cancel was refused"),
    ],
)
def test_a_run_that_shows_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch, ledger: int, result: dict[str, object], says: str
) -> None:
    (finding,) = judged(monkeypatch, ledger=ledger, **result)
    assert finding.startswith(says)


def test_the_cancels_of_a_run_are_shown_where_there_are_any() -> None:
    """A run without them prints what it printed before there were any."""
    plain, with_cancels = ScenarioResult("any"), ScenarioResult("any", cancels=CancelCounts(7, 5, 3, 2, 1))
    assert "cancels" not in command._document(plain)
    assert "cancels" not in command._verdict(plain)
    assert not [name for name, _ in plain.figures() if "cancels" in name]
    document = command._document(with_cancels)
    assert document["cancels"] == dataclasses.asdict(with_cancels)["cancels"]
    assert "\n    cancels: 7 acknowledged, 5 refused, 3 unknown" in command._verdict(with_cancels)
    assert ("cancels acknowledged", "7 (2 not cancelled)") in with_cancels.figures()


@pytest.mark.parametrize(("share", "option"), [(0.0, ""), (0.25, " --cancel 0.25")])
def test_the_command_that_plays_it_again_cancels_as_many(share: float, option: str) -> None:
    assert command._cancelling(chaos.Plan(orders=1, rate=1.0, seed=1, session_s=6.0, cancel=share)) == option
