"""Nodes of a downstream with lanes: killed in the middle of a call, held up by a slow receiver, and what tools say."""

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from brewctl.lab.play.nodes import Node, Nodes
from tests.conftest import Rig, limited
from tests.integration.lanes_tools import until
from tests.integration.retention_tools import park

# A receiver that is a folder: it notes each call, and holds those of customers whose file is there.
MODULE = """
import os, pathlib, time
from brewctl import Event, OrderCreated, downstream

FOLDER = pathlib.Path(os.environ["RECEIVER"])

@downstream(
    "crm",
    schema="CREATE TABLE IF NOT EXISTS told (order_id uuid NOT NULL)",
    done="SELECT order_id FROM told",
    lanes=4,
)
def tell(event: Event[OrderCreated], tx):
    with (FOLDER / "calls").open("a") as calls:
        calls.write(f"{event.data.customer_id} {event.data.order_id} {event.id}\\n")
    while (FOLDER / event.data.customer_id).exists():
        time.sleep(0.02)
    tx.execute("INSERT INTO told VALUES (%s)", [event.data.order_id])
"""
NAME = "laned_crm:tell"


@dataclass
class Crm:
    """The rig with that downstream, and its receiver."""

    rig: Rig
    folder: Path
    nodes: Nodes
    address: str

    def start(self, name: str) -> Node:
        node = self.nodes.start(name, "consume", NAME)
        until(f"{name} has joined", lambda: node.ready)
        return node

    def order(self, customer: str, count: int = 1) -> list[str]:
        words = ("create-order", "--customer", customer, "--count", str(count), "--addr", self.address, "--json")
        made = self.rig.brewctl(*words)
        assert made.returncode == 0, made.stderr
        return [json.loads(line)["order_id"] for line in made.stdout.splitlines()]

    def calls(self, customer: str) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            lines = [line.split() for line in (self.folder / "calls").read_text().splitlines()]
            return [words[1:] for words in lines if words[0] == customer]
        return []

    def told(self) -> int:
        (count,) = self.rig.connection.execute("SELECT count(*) FROM told").fetchone() or (0,)
        return int(count)


@pytest.fixture
def crm(rig: Rig, tmp_path: Path) -> Iterator[Crm]:
    (tmp_path / "laned_crm.py").write_text(MODULE)
    env = {"RECEIVER": str(tmp_path), "BREW_APP_DIR": str(tmp_path), "BREW_DOWNSTREAMS": NAME}
    rig.env.update(env)
    made = rig.brewctl("db", "init", NAME)
    assert made.returncode == 0, made.stderr
    _, address = rig.serve()
    settings = limited(rig.settings, session_s=3.0)
    with Nodes(settings, logs=tmp_path / "logs", on_line=lambda _line: None, env=env) as nodes:
        yield Crm(rig, tmp_path, nodes, address)


def test_a_node_that_is_killed_in_a_call_makes_another_call_it_again_with_its_key_and_once_it_has_its_effect(
    crm: Crm,
) -> None:
    hold = crm.folder / "slow"
    hold.touch()
    nodes = {name: crm.start(name) for name in ("crm-1", "crm-2")}
    crm.order("slow")
    until("it is called", lambda: crm.calls("slow"))
    (name,) = crm.rig.connection.execute("SELECT node_id FROM waiting_events").fetchone() or ("",)
    nodes[name].kill()
    until("it is called again", lambda: len(crm.calls("slow")) == 2)
    assert crm.told() == 0
    hold.unlink()
    until("it is told", lambda: crm.told() == 1)
    again, before = crm.calls("slow")
    assert again == before
    verified = crm.rig.brewctl("verify", "--wait", "30")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_slow_receiver_neither_delays_other_customers_nor_has_the_group_rebalance(crm: Crm) -> None:
    (crm.folder / "slow").touch()
    node = crm.start("crm-1")
    (slow,) = crm.order("slow")
    until("it is called", lambda: crm.calls("slow"))
    crm.order("quick", 50)
    until("the others are told", lambda: crm.told() == 50)
    # What tools say of the one that waits.
    verified = crm.rig.brewctl("verify")
    assert verified.returncode == 0, verified.stdout
    assert "on the way: 1 unread by crm" in verified.stdout
    late = crm.rig.brewctl("verify", "--late", "0")
    assert (late.returncode, "waits for its handler" in late.stdout) == (1, True), late.stdout + late.stderr
    traced = crm.rig.brewctl("trace", slow)
    assert "taken" in traced.stdout
    assert "whose handler runs on crm-1" in traced.stdout
    doctor = crm.rig.brewctl("doctor")
    assert "crm has 1 event waiting for its handler" in doctor.stdout
    (crm.folder / "slow").unlink()
    until("it is told", lambda: crm.told() == 51)
    node.process.send_signal(signal.SIGTERM)
    node.ended(within_s=20)
    assert len([line for line in node.lines if "partitions assigned" in line]) == 1
    assert "processed=51 done=51 skipped=0" in node.lines[-1]


def test_a_downstream_whose_lanes_were_taken_away_does_not_start_while_events_wait_for_them(crm: Crm) -> None:
    (crm.folder / "slow").touch()
    node = crm.start("crm-1")
    crm.order("slow")
    until("it is called", lambda: crm.calls("slow"))
    node.kill()
    (crm.folder / "laned_crm.py").write_text(MODULE.replace("lanes=4", "lanes=0"))
    refused = crm.rig.brewctl("consume", NAME, "--node", "crm-2")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert "downstream crm has no lanes, and events that wait for them" in refused.stderr
    assert "run it as it was, with lanes" in refused.stderr


def test_what_nodes_with_lanes_parked_is_not_redriven_without_them_until_a_node_without_them_has_started(
    crm: Crm,
) -> None:
    crm.start("crm-1").kill()
    park(crm.rig.connection, "crm", 7)
    (crm.folder / "laned_crm.py").write_text(MODULE.replace("lanes=4", "lanes=0"))
    refused = crm.rig.brewctl("dlq", "redrive", "--all")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused.stderr
    assert f"nothing was redriven: nodes of crm have lanes, and {NAME} has none here" in refused.stderr
    crm.start("crm-2")
    tried = crm.rig.brewctl("dlq", "redrive", "--all")
    assert tried.stdout == "redriven=0 already=0 refused=1\n", "it was tried: what it holds is no event"
