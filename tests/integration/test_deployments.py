"""Two deployments on one topic and in one group, and two replicas of one name: roles and doctor say so."""

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings, environment
from brewctl.delivery import database, presence
from brewctl.delivery.presence import Replica, Work
from brewctl.delivery.schema import setup
from brewctl.doctor import Finding, Verdict, deployments
from brewctl.lab.play.nodes import Nodes
from tests.conftest import Rig, run


@pytest.fixture
def other(rig: Rig) -> Iterator[Settings]:
    """Another database that publishes into the same topic."""
    name = f"brew_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(rig.settings.database_url, autocommit=True) as maintenance:
        maintenance.execute(f'CREATE DATABASE "{name}"')
        try:
            url = make_conninfo(rig.settings.database_url, dbname=name)
            settings = dataclasses.replace(rig.settings, database_url=url)
            with database.connect(settings) as connection:
                setup.initialize(connection)
            yield settings
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def examined(settings: Settings) -> list[Finding]:
    return list(deployments.check(settings))


def publish(settings: Settings, address: str, count: int) -> None:
    """Create orders, and wait until they are in the topic."""
    env = environment(settings)
    assert run("create-order", "--customer", "c1", "--count", str(count), "--addr", address, env=env).returncode == 0


def test_a_topic_into_which_two_databases_publish(rig: Rig, other: Settings, tmp_path: Path) -> None:
    node, address = rig.serve()
    publish(rig.settings, address, 2)
    rig.wait("an empty outbox", lambda: rig.counts().outbox_unpublished == 0)
    assert [found.verdict for found in examined(rig.settings)] == [Verdict.OK]
    # What is older than the outbox's rows is from before they were emptied.
    assert rig.brewctl("db", "init", "--reset", "--yes").returncode == 0
    publish(rig.settings, address, 1)
    rig.wait("an empty outbox", lambda: rig.counts().outbox_unpublished == 0)
    assert [found.verdict for found in examined(rig.settings)] == [Verdict.OK]
    node.process.terminate()
    with (
        Nodes(other, logs=tmp_path / "other", on_line=lambda _line: None) as nodes,
        database.connect(other) as theirs,
    ):
        second = nodes.start("order-9", "serve", "order", "--port", "0")
        second.wait_ready(timeout_s=120)
        publish(other, second.address, 3)
        published = "SELECT count(*) FROM outbox WHERE published_at IS NOT NULL"
        rig.wait("their events", lambda: theirs.execute(published).fetchone() == (3,))
    (finding,) = examined(rig.settings)
    assert finding.verdict is Verdict.FAIL
    assert f"3 records of the newest 6 in {rig.settings.topic}, by order-9, are not in this outbox" in finding.found
    assert "BREW_TOPIC" in finding.mend


def test_a_member_of_another_deployment(rig: Rig, other: Settings) -> None:
    rig.start("inventory-1", "consume", "inventory")
    assert [found.verdict for found in examined(rig.settings)] == [Verdict.OK]
    (finding,) = examined(other)
    assert finding.verdict is Verdict.WARN
    assert finding.found.startswith("inventory-1 at ")
    assert "is no node of this database" in finding.found


def test_two_nodes_of_one_name(rig: Rig) -> None:
    first, _ = rig.serve("order-1")
    (found,) = examined(rig.settings)
    assert found.verdict is Verdict.OK
    with contextlib.ExitStack() as stack:
        stack.enter_context(presence.kept(rig.settings, Replica("order-1", "order"), Work))
        said = 'node_name_taken by="pid '
        rig.wait("a line of the first", lambda: said in Path(first.log).read_text("utf-8"))
        rig.wait("a warning of doctor's", lambda: examined(rig.settings)[0].verdict is Verdict.WARN)
        (finding,) = examined(rig.settings)
        assert "two nodes are called order-1: pid " in finding.found
        assert str(first.process.pid) in finding.found
    # Its row says that it stopped, until the other one writes it.
    rig.wait("one node of the name", lambda: examined(rig.settings)[0].verdict is Verdict.OK)
    assert Path(first.log).read_text("utf-8").count("node_name_taken") == 1
