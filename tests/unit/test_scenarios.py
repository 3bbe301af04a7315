"""The plans of chaos: made from a seed and nothing else, and whole."""

import json
from pathlib import Path

import pytest

from brewctl.config import DEFAULT_DOWNSTREAMS, Settings
from brewctl.lab.chaos.scenarios import SCENARIOS, Scenario, chance
from brewctl.lab.play.cast import STORY, Cast, cast
from tests.conftest import run

# What the project says that it survives, by the scenario that does it.
PROMISED = {
    "kill-order", "kill-publisher", "kill-consumer", "kill-roles", "zombie", "rolling-restart",
    "kill-broker", "kill-two-brokers", "kill-all-brokers",
    "crash-postgres", "terminate-backends", "exhaust-connections",
    "slow-network", "black-hole", "reset-connections", "narrow-network", "cut-responses",
    "poison-records", "full-disk-postgres", "full-disk-broker", "mixed",
}  # fmt: skip


def plan(scenario: Scenario, seed: int, session_s: float = 6.0, players: Cast = STORY) -> list[str]:
    return [str(step) for step in scenario.plan(chance(seed, scenario.name), session_s, players)]


def test_every_promise_has_its_scenario() -> None:
    assert {scenario.name for scenario in SCENARIOS} == PROMISED
    assert len(SCENARIOS) == len(PROMISED)


def test_the_readme_counts_the_faults() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"`make chaos` plays {len(SCENARIOS)} faults" in readme


def test_the_list_fits_into_80_columns() -> None:
    done = run("chaos", "--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [scenario.name for scenario in SCENARIOS]
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    rows = [json.loads(line) for line in run("chaos", "--list", "--json").stdout.splitlines()]
    assert {row["name"] for row in rows} == PROMISED
    assert all(row["title"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--scenario", "kill-everything"), "no scenario 'kill-everything': see `brewctl chaos --list`"),
        (("--report", "chaos.pdf"), "--report chaos.pdf must be a .html file"),
        (("--report", "/nowhere/chaos.html"), "--report /nowhere/chaos.html must be"),
    ],
)
def test_misuse_is_told_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = run("chaos", *arguments, env={"BREW_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.startswith(f"brewctl: {told}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_same_seed_makes_the_same_plan(scenario: Scenario) -> None:
    assert plan(scenario, 7) == plan(scenario, 7)
    assert plan(scenario, 7), "nothing would happen"


def test_another_seed_makes_another_plan() -> None:
    (mixed,) = (scenario for scenario in SCENARIOS if scenario.name == "mixed")
    assert len({tuple(plan(mixed, seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize("seed", range(20))
def test_the_mixture_has_faults_of_every_kind(seed: int) -> None:
    (mixed,) = (scenario for scenario in SCENARIOS if scenario.name == "mixed")
    text = "\n".join(plan(mixed, seed))
    for kind in (
        "kill -9 ", "SIGTERM ", "SIGSTOP ", "kill -9 kafka-", "postgres stops", "pg_terminate_backend",
        "latency ", "black hole", "reset", "answers cut", "poison",
    ):  # fmt: skip
        assert kind in text


@pytest.mark.parametrize("name", ["kill-consumer", "zombie"])
@pytest.mark.parametrize("session_s", [3.0, 6.0, 15.0])
def test_a_consumer_is_gone_for_longer_than_its_session(name: str, session_s: float) -> None:
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    (step,) = scenario.plan(chance(1, name), session_s, STORY)
    assert step.for_s > session_s


LOYALTY = """
from brewctl import Event, OrderCreated, downstream

@downstream("loyalty")
def points(event: Event[OrderCreated], tx) -> None: ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A downstream of a user's own, in the working directory."""
    (tmp_path / "played_loyalty.py").write_text(LOYALTY)
    monkeypatch.chdir(tmp_path)
    return "played_loyalty:points"


def test_the_cast_of_the_story() -> None:
    assert STORY.nodes == ("order-1", "order-2", "inventory-1", "inventory-2", "notification-1")
    assert STORY.commands["notification-1"] == ("consume", "notifications")


def test_each_downstream_that_the_settings_name_plays(own: str) -> None:
    three = cast(Settings(downstreams=(*DEFAULT_DOWNSTREAMS, own)))
    assert three.nodes == (*STORY.nodes, "loyalty-1")
    assert three.commands["loyalty-1"] == ("consume", own)
    (kill,) = (scenario for scenario in SCENARIOS if scenario.name == "kill-roles")
    assert [line.split()[-1] for line in (step.split(",")[0] for step in plan(kill, 1, players=three))] == [
        "inventory-1", "inventory-2", "notification-1", "loyalty-1", "order-1", "order-2",
    ]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_plan_needs_the_storys_own_downstreams(own: str, scenario: Scenario) -> None:
    alone = cast(Settings(downstreams=(own,)))
    assert alone.nodes == ("order-1", "order-2", "loyalty-1", "loyalty-2")
    for text in (*plan(scenario, 3, players=alone), scenario.title_for(alone)):
        assert "inventory" not in text
        assert "notification" not in text
        assert "{" not in text


def test_the_list_names_who_is_killed(own: str, tmp_path: Path) -> None:
    for arguments, title in (((), "an inventory replica"), (("--downstream", own), "a loyalty replica")):
        listed = run("chaos", "--list", *arguments, env={"BREW_HOME": str(tmp_path), "BREW_APP_DIR": str(tmp_path)})
        assert f"kill -9 of {title}, gone beyond its session" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "env", "told"),
    [
        (("--downstream", "nothing:here"), {}, "there is no module 'nothing'"),
        ((), {"BREW_DOWNSTREAMS": "nothing"}, "BREW_DOWNSTREAMS: 'nothing' is not MODULE:NAME"),
        (
            ("--downstream", "inventory"),
            {"BREW_INVENTORY_DATABASE_URL": "postgresql://u@127.0.0.1:1/other"},
            "chaos breaks servers: it runs on the sandbox alone: unset BREW_INVENTORY_DATABASE_URL",
        ),
    ],
)
def test_a_downstream_that_can_not_play(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], told: str
) -> None:
    done = run("chaos", *arguments, env={"BREW_HOME": str(tmp_path), **env})
    assert done.returncode == 2
    assert done.stderr.startswith(f"brewctl: {told}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
