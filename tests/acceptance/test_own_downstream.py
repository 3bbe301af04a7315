"""A downstream of a user's own on a sandbox: chaos plays it, top shows it, and its nodes are like any others."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psycopg
import pytest

from brewctl.config import resolve
from brewctl.delivery.topics import topics
from brewctl.lifecycle import wait_until
from tests.acceptance.conftest import brewctl, environment, status
from tests.conftest import run
from tests.terminal import opened

LOYALTY = Path(__file__).parents[2] / "examples" / "loyalty.py"
ALONE, WITH_THE_STORY = "loyalty:points", "inventory,notifications,loyalty:points"


@pytest.fixture
def stage(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home, without nodes of other tests; the example's module lies in the working directory."""
    shutil.copy(LOYALTY, tmp_path)
    monkeypatch.chdir(tmp_path)
    made = brewctl(home, "db", "init", "loyalty:points")
    assert made.returncode == 0, made.stderr
    yield home
    brewctl(home, "stop", "--all")
    topics.await_empty_groups(resolve({}, environment(home), {}), timeout_s=30)


@pytest.fixture
def database(stage: Path) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(environment(stage)["BREW_DATABASE_URL"], autocommit=True) as connection:
        yield connection


def count(connection: psycopg.Connection[Any], table: str) -> int:
    (found,) = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
    return int(found)


def play(home: Path, scenario: str, **env: str) -> dict[str, Any]:
    """Play a scenario over a small load, and verify what it left."""
    env = {"BREW_HOME": str(home), **env}
    load = ("--orders", "60", "--rate", "30", "--seed", "3", "--session-timeout", "3")
    done = run("chaos", "--scenario", scenario, *load, "--json", env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    verified = run("verify", "--json", env=env)
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["facts"]["lag"].keys() == {
        name.partition(":")[0] for name in env["BREW_DOWNSTREAMS"].split(",")
    }
    (result,) = map(json.loads, done.stdout.splitlines())
    assert (result["ok"], result["missing"], result["doubled"]) == (True, 0, 0)
    return dict(result)


def test_chaos_kills_it_beside_the_storys_two(stage: Path, database: psycopg.Connection[Any]) -> None:
    # Left by an earlier run: of an order that is emptied away.
    database.execute("INSERT INTO points VALUES (gen_random_uuid(), 1)")
    result = play(stage, "kill-roles", BREW_DOWNSTREAMS=WITH_THE_STORY)
    victims = [step.split(",")[0].split()[-1] for step in result["plan"]]
    assert victims == ["inventory-1", "inventory-2", "notification-1", "loyalty-1", "order-1", "order-2"]
    orders = count(database, "orders")
    assert orders >= 60
    assert [count(database, table) for table in ("points", "inventory_reservations")] == [orders, orders]
    ledger = "SELECT count(*) FROM points JOIN orders ON id = order_id AND points = amount_cents / 100"
    assert database.execute(ledger).fetchone() == (orders,)


def test_chaos_waits_for_nobody_who_does_not_play(stage: Path, database: psycopg.Connection[Any]) -> None:
    """Alone, with a prefix; and unreadable records become letters of the group by its name in Kafka."""
    result = play(stage, "poison-records", BREW_DOWNSTREAMS=ALONE, BREW_GROUP_PREFIX="team.")
    assert any("every 20th effect of loyalty refused" in step for step in result["plan"])
    assert count(database, "points") == count(database, "orders") >= 60
    parked = database.execute("SELECT DISTINCT consumer, outcome FROM parked_events").fetchall()
    assert parked == [("loyalty", "redriven")], "nothing was refused: nothing was tested"
    assert count(database, "inventory_reservations") == 0
    assert count(database, "processed_events WHERE consumer <> 'loyalty'") == 0


def test_it_is_started_shown_logged_and_stopped_by_its_groups_name(stage: Path) -> None:
    started = brewctl(stage, "start", "loyalty:points", "2")
    assert started.returncode == 0, started.stderr
    assert [line.split()[0] for line in started.stdout.splitlines()] == ["node", "loyalty-1", "loyalty-2"]
    row = status(stage)["loyalty-1"]
    assert (row["role"], row["state"]) == ("loyalty:points", "runs")
    for command in ("stop", "logs"):
        words = {"COMP_WORDS": f"brewctl {command} loy", "COMP_CWORD": "2", "_BREWCTL_COMPLETE": "complete_bash"}
        assert run(env={"BREW_HOME": str(stage), **words}).stdout.split() == ["loyalty-1", "loyalty-2"]
    logged = brewctl(stage, "logs", "loyalty-1")
    assert all(line.startswith("loyalty-1 | ") for line in logged.stdout.splitlines())
    assert "partitions assigned" in logged.stdout
    stopped = brewctl(stage, "stop", "loyalty-1", "loyalty-2")
    assert stopped.returncode == 0, stopped.stderr
    assert "[loyalty-2] loyalty stopped. processed=" in stopped.stdout


def test_top_counts_it_and_adds_a_node_of_it(stage: Path, database: psycopg.Connection[Any]) -> None:
    assert brewctl(stage, "db", "init", "--reset").returncode == 0
    database.execute("TRUNCATE points")
    env = {"BREW_HOME": str(stage), "BREW_DOWNSTREAMS": ALONE}
    with opened("top", env=env) as terminal:
        terminal.wait_for("orders", "loyalty", "q quit", "o/y add")
        assert "reservations" not in terminal.text
        terminal.press("o", "y")
        terminal.wait_for("another node of loyalty:points starts", "loyalty-1")
        terminal.wait_for("loyalty: 0 1 2 3 4 5 assigned to loyalty-1")
        terminal.wait_for("● runs    port ")
        terminal.press("l")
        points = re.compile(r"^loyalty +~?[1-9]\d* ", re.MULTILINE)
        terminal.wait_until("its points", lambda: points.search(terminal.text) is not None)
        terminal.press("q")
        assert terminal.wait() == 0
    wait_until("all points", lambda: count(database, "points") == count(database, "orders") > 0, timeout_s=60)
    picture = Path("top.svg").resolve()
    taken = run("top", "--picture", str(picture), "--after", "3", env={**env, "BREW_DOWNSTREAMS": WITH_THE_STORY})
    assert taken.returncode == 0, taken.stderr
    drawn = "".join(ET.parse(picture).getroot().itertext()).replace("\xa0", " ")
    given = count(database, "points")
    assert re.search(rf"loyalty +{given:,} +\d+/s", drawn), drawn
    assert re.search(r"reservations +0 +0/s", drawn), "the story's own beside it"
    assert re.search(r"loyalty-1 +\d+ +● runs\s*\d+ processed, ", drawn), drawn
    assert re.search(r"loyalty +(1 \+0 +){6}", drawn), drawn
