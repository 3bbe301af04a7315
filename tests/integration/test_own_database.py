"""A downstream in a database of its own: every tool looks for its state there, and says so where it can't."""

import dataclasses
import json
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from brewctl.delivery.schema.homes import Home
from brewctl.lifecycle import wait_until
from brewctl.security import Secret
from brewctl.verify import elsewhere, verify
from tests.conftest import Rig, begin, run
from tests.integration.chain_tools import broken

MODULE = """
from brewctl import Event, OrderCancelled, OrderCreated, downstream

@downstream(
    "loyalty",
    schema="CREATE TABLE IF NOT EXISTS points (order_id uuid NOT NULL, cancelled bool NOT NULL DEFAULT false)",
    done="SELECT order_id FROM points",
)
def points(event: Event[OrderCreated | OrderCancelled], tx):
    if event.type == "order.created":
        tx.execute("INSERT INTO points (order_id) VALUES (%s)", [event.data.order_id])
    else:
        tx.execute("UPDATE points SET cancelled = true WHERE order_id = %s", [event.data.order_id])
"""
NAME = "own_loyalty:points"
NOWHERE = "postgresql://somebody@127.0.0.1:1/points"
AWAY = "downstream loyalty: postgres 127.0.0.1:1/points refused the connection"


@dataclass
class Own:
    """A rig, and the downstream's own database beside the rig's."""

    rig: Rig
    url: str
    database: psycopg.Connection[Any]

    def brewctl(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run(*words, env={**self.rig.env, **env}, timeout=60)

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.database.execute(statement.encode(), parameters).fetchall()

    def orders(self, count: int, *, cancelled: bool = True) -> list[str]:
        """Make orders, cancel the last one, and wait for the topic to have their events."""
        _, address = self.rig.serve()
        made = self.brewctl("create-order", "--customer", "c1", "--count", str(count), "--addr", address)
        ids = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", made.stdout)
        assert len(ids) == count, made.stderr
        if cancelled:
            assert self.brewctl("cancel-order", ids[-1], "--addr", address).returncode == 0
        self.rig.wait("the topic", lambda: self.rig.counts().outbox_unpublished == 0)
        return ids

    def consume(self, processed: int) -> None:
        """Let a node run until so many events are processed or parked, and end."""
        node = begin("consume", NAME, "--node", "loyalty-1", env=self.rig.env)
        done = "SELECT (SELECT count(*) FROM processed_events) + (SELECT count(*) FROM parked_events)"
        try:
            wait_until("its events", lambda: self.rows(done) == [(processed,)], timeout_s=60)
        finally:
            node.send_signal(signal.SIGTERM)
            _, problem = node.communicate(timeout=60)
        assert node.returncode == 0, problem

    def park(self) -> str:
        """Three orders, of which the last, which is cancelled, can't have its points: two events are parked."""
        *_, bad = self.orders(3)
        self.database.execute(f"ALTER TABLE points ADD CONSTRAINT bad CHECK (order_id <> '{bad}')".encode())
        self.consume(4)
        self.database.execute("ALTER TABLE points DROP CONSTRAINT bad")
        assert self.rows("SELECT outcome FROM parked_events") == [(None,), (None,)]
        return bad

    def broken(self) -> dict[str, int]:
        """The checks of `verify` that fail, and how often."""
        said = self.brewctl("verify", "--json", "--late", "0")
        assert said.stdout, said.stderr
        checks = {each["name"]: each["violations"] for each in json.loads(said.stdout)["checks"]}
        found = {name: count for name, count in checks.items() if count}
        assert said.returncode == bool(found)
        return found

    def findings(self, **env: str) -> dict[str, dict[str, str]]:
        said = self.brewctl("doctor", "--json", **env)
        return {each["check"]: each for each in json.loads(said.stdout)["findings"]}


@pytest.fixture
def bare(rig: Rig, tmp_path: Path) -> Iterator[Own]:
    """Its database has no tables yet."""
    tmp_path.joinpath("own_loyalty.py").write_text(MODULE)
    with rig.own_database() as url:
        rig.env |= {"BREW_APP_DIR": str(tmp_path), "BREW_DOWNSTREAMS": NAME, "BREW_LOYALTY_DATABASE_URL": url}
        try:
            with psycopg.connect(url, autocommit=True) as database:
                yield Own(rig, url, database)
        finally:
            rig.nodes.stop()


@pytest.fixture
def own(bare: Own) -> Own:
    made = bare.brewctl("db", "init", NAME)
    assert made.returncode == 0, made.stderr
    return bare


def test_all_tools_see_what_it_did(own: Own) -> None:
    *_, last = own.orders(3)
    own.consume(4)

    assert own.brewctl("counts").stdout.rstrip().endswith(" loyalty=3")
    assert json.loads(own.brewctl("counts", "--json").stdout)["downstreams"] == {"loyalty": 3}
    traced = own.brewctl("trace", last)
    assert traced.returncode == 0, traced.stderr
    assert re.search(r"ms  done +by group loyalty", traced.stdout)
    assert "finished" in traced.stdout
    verified = own.brewctl("verify", "--late", "0")
    assert verified.returncode == 0, verified.stdout
    assert re.search(r"loyalty-missing .* 3 +0\n", verified.stdout)
    assert re.search(r"loyalty-sequence .* 4 +0\n", verified.stdout)
    found = own.findings()
    assert found["database-loyalty"]["verdict"] == "ok"
    assert found["records"]["verdict"] == "ok", "its dedup rows were looked for in the story's database"
    assert "parked" in found
    assert own.brewctl("outbox", "republish", "--missing", "--dry-run").stdout == "missing=0\n"


def test_counts_go_on_while_its_database_is_away_and_say_when_it_is_back(own: Own) -> None:
    own.orders(1, cancelled=False)
    own.consume(1)
    watch = begin("counts", "--watch", env=own.rig.env)
    (name,) = own.rows("SELECT current_database()")[0]
    try:
        assert watch.stdout
        lines = iter(watch.stdout.readline, "")
        assert next(lines).rstrip().endswith(" loyalty=1")
        own.rig.connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        assert any(line.rstrip().endswith(" orders=1 outbox_unpublished=0 reservations=0 notifications=0 loyalty=?")
                   for line in lines)  # fmt: skip
        own.rig.connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
        assert any(line.rstrip().endswith(" loyalty=1") for line in lines)
    finally:
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=30)
    assert said.count("trying again") == 1, said
    assert "every downstream's database answers again" in said


def test_a_parked_event_is_seen_by_all_tools_and_redriven_with_what_waits_behind_it(own: Own) -> None:
    bad = own.park()

    assert "parked=2: see `brewctl dlq list`" in own.brewctl("counts").stdout
    listed = [json.loads(line) for line in own.brewctl("dlq", "list", "--json").stdout.splitlines()]
    assert [(each["id"], each["state"], each["seq"]) for each in listed] == [
        ("p1@loyalty", "parked", 1),
        ("p2@loyalty", "parked", 2),
    ]
    assert "next: brewctl dlq redrive p2@loyalty" in own.brewctl("dlq", "show", "p2@loyalty").stderr
    for unknown in ("p1", "p7@loyalty", "p1@nobody"):
        said = own.brewctl("dlq", "redrive", unknown)
        assert (said.returncode, said.stdout) == (1, "")
        assert said.stderr.startswith(f"brewctl: no parked event {unknown}"), said.stderr
    traced = own.brewctl("trace", bad)
    assert re.search(r"ms  parked +p1@loyalty of group loyalty: postgres", traced.stdout)
    assert "next: brewctl dlq redrive p1@loyalty" in traced.stderr
    parked = own.findings()["parked"]
    assert (parked["verdict"], parked["found"]) == (
        "warn",
        "loyalty has parked 2 events of 1 key, whose effect failed",
    )
    said = own.brewctl("verify", "--late", "0")
    assert said.returncode == 1
    assert "is parked: brewctl dlq redrive p1@loyalty" in re.sub(r"\s+", " ", said.stdout)

    done = own.brewctl("dlq", "redrive", "p1@loyalty")
    assert (done.returncode, done.stdout) == (0, "redriven=2 already=0 refused=0\n"), done.stderr
    # Swapped, its cancel would have found no row.
    assert own.rows("SELECT cancelled FROM points WHERE order_id = %s", bad) == [(True,)]
    assert own.broken() == {}
    assert own.brewctl("dlq", "redrive", "p1@loyalty").stdout == "redriven=0 already=1 refused=0\n"
    assert "parked=" not in own.brewctl("counts").stdout


def test_what_is_parked_there_is_dropped_there(own: Own) -> None:
    own.park()
    done = own.brewctl("dlq", "drop", "--group", "loyalty", "--yes")
    assert (done.returncode, done.stdout) == (0, "dropped=2 already=0 refused=0\n"), done.stderr
    assert own.rows("SELECT DISTINCT outcome FROM parked_events") == [("dropped",)]
    assert own.rows("SELECT count(*) FROM processed_events") == [(4,)]
    assert own.rows("SELECT count(*) FROM points") == [(2,)]


def test_numbers_of_two_databases_are_told_apart(own: Own) -> None:
    own.park()
    own.rig.env["BREW_DOWNSTREAMS"] = f"inventory,{NAME}"
    with own.database.cursor() as there, own.rig.connection.cursor() as story:
        columns = 'key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms, value, headers'
        (row,) = there.execute(f"SELECT {columns} FROM parked_events WHERE id = 1".encode())
        story.execute(
            f"INSERT INTO parked_events (consumer, {columns}, reason, attempts) "
            f"VALUES ('inventory', {', '.join(['%s'] * 11)}, 'no stock', 1)".encode(),
            row,
        )
    assert re.findall(r"^p\S+", own.brewctl("dlq", "list").stdout, re.MULTILINE) == ["p1@loyalty", "p2@loyalty", "p1"]
    assert "parked=3:" in own.brewctl("counts").stdout
    assert own.brewctl("dlq", "redrive", "p1").stdout == "redriven=1 already=0 refused=0\n"
    assert own.rows("SELECT outcome FROM parked_events") == [(None,), (None,)]
    assert own.rig.counts().reservations == 1


def test_verify_finds_an_effect_that_is_gone_one_that_is_doubled_and_one_of_no_order(own: Own) -> None:
    first, second, third = own.orders(3, cancelled=False)
    own.consume(3)
    assert own.broken() == {}
    own.database.execute("DELETE FROM points WHERE order_id = %s", [first])
    assert own.broken() == {"loyalty-missing": 1, "loyalty-dedup": 1}
    own.database.execute("INSERT INTO points VALUES (%s)", [first])
    own.database.execute("INSERT INTO points VALUES (%s)", [second])
    assert own.broken() == {"loyalty-doubled": 1}
    own.database.execute("DELETE FROM points WHERE order_id IN (%s, %s)", [first, second])
    own.database.execute("INSERT INTO points VALUES (%s), (%s), (%s)", [first, second, uuid.uuid4()])
    assert own.broken() == {"loyalty-orphans": 1}
    own.database.execute("DELETE FROM points WHERE order_id NOT IN (%s, %s, %s)", [first, second, third])
    # Of another event that had the outbox id before: the event of now has not been processed.
    own.database.execute("UPDATE processed_events SET event_id = gen_random_uuid() WHERE outbox_id = 1")
    assert own.broken() == {"loyalty-dedup": 1, "loyalty-offsets": 1}


def test_verify_does_not_look_for_its_rows_in_the_storys_database(own: Own) -> None:
    own.orders(2, cancelled=False)
    own.consume(2)
    # What it had there before it moved.
    own.rig.connection.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('loyalty', 77)")
    assert own.broken() == {}
    own.database.execute("DELETE FROM processed_events WHERE outbox_id = 1")
    own.rig.connection.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('loyalty', 1)")
    assert own.broken() == {"loyalty-dedup": 1, "loyalty-offsets": 1}


def test_what_is_done_there_while_verify_begins_is_no_fault(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREW_APP_DIR", own.rig.env["BREW_APP_DIR"])
    monkeypatch.setenv("BREW_LOYALTY_DATABASE_URL", own.url)
    _, address = own.rig.serve()
    own.rig.start("loyalty-1", "consume", NAME)
    copied = elsewhere.copied

    def delayed(apart: Sequence[Home], *, statement_s: float) -> AbstractContextManager[list[elsewhere.CopiedRows]]:
        assert own.brewctl("create-order", "--customer", "c1", "--addr", address).returncode == 0
        own.rig.wait("its effect", lambda: own.rows("SELECT count(*) FROM points") == [(1,)])
        return copied(apart, statement_s=statement_s)

    # Of its database first: what has been done there is then in the story's outbox, as verify sees that.
    monkeypatch.setattr(elsewhere, "copied", delayed)
    its = (Secret("BREW_LOYALTY_DATABASE_URL", own.url),)
    found = verify(dataclasses.replace(own.rig.settings, downstreams=(NAME,), own_databases=its), late_s=600)
    assert (broken(found), found.facts.orders, found.check("loyalty-doubled").examined) == ({}, 1, 1)


def test_a_database_that_is_away_is_named_and_the_rest_is_shown(own: Own) -> None:
    order, *_ = own.orders(2, cancelled=False)
    away = {"BREW_LOYALTY_DATABASE_URL": NOWHERE}
    hint = "start it (`brewctl up` where it is the sandbox's), or correct BREW_LOYALTY_DATABASE_URL"
    shown = {
        ("counts",): "counts: orders=2 outbox_unpublished=0 reservations=0 notifications=0 loyalty=?\n",
        ("verify",): "",
        ("dlq", "list"): "",
        ("dlq", "show", "p1@loyalty"): "",
        ("dlq", "redrive", "--all"): "",
        ("dlq", "drop", "--all", "--yes"): "",
    }
    for words, output in shown.items():
        said = own.brewctl(*words, **away)
        assert (said.returncode, said.stdout) == (3, output), (words, said.stderr)
        assert said.stderr == f"brewctl: {AWAY}: {hint}\n", words
    traced = own.brewctl("trace", order, **away)
    assert (traced.returncode, traced.stderr.splitlines()[-1]) == (3, f"brewctl: {AWAY}: {hint}")
    assert "ms  published" in traced.stdout
    assert f"whether it is done by group loyalty is not known: {AWAY}" in " ".join(traced.stdout.split())
    found = own.findings(**away)
    assert (found["database-loyalty"]["verdict"], found["database-loyalty"]["found"]) == ("fail", AWAY)
    assert found["database-loyalty"]["mend"] == hint
    assert (found["postgres"]["verdict"], found["kafka"]["verdict"]) == ("ok", "ok")


def test_a_database_without_its_tables_names_the_command_that_makes_them(bare: Own) -> None:
    bare.orders(1, cancelled=False)
    finding = bare.findings()["database-loyalty"]
    assert (finding["verdict"], finding["mend"]) == ("fail", f"run `brewctl db init {NAME}`")
    said = bare.brewctl("counts")
    assert (said.returncode, said.stdout.rstrip().endswith(" loyalty=?")) == (1, True)
    assert re.fullmatch(
        rf"brewctl: downstream loyalty has no processed_events, .*: run `brewctl db init {NAME}`\n", said.stderr
    )

    assert bare.brewctl("db", "init", NAME).returncode == 0
    bare.database.execute("DROP TABLE points")
    finding = bare.findings()["database-loyalty"]
    assert (finding["verdict"], finding["mend"]) == (
        "fail",
        f"where its table is missing: run `brewctl db init {NAME}`",
    )
    assert "relation" in finding["found"]
