"""The dashboard's keys for downstreams, and its load, without a screen."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from brewctl.config import DEFAULT_DOWNSTREAMS, Settings
from brewctl.lab.load.load import CallOutcome, LoadCall
from brewctl.lab.top import controls
from brewctl.lab.top.controls import LoadControl
from brewctl.lab.top.keys import adding, line

LOYALTY = """
from brewctl import Event, OrderCreated, downstream

@downstream("loyalty")
def points(event: Event[OrderCreated], tx) -> None: ...

@downstream("a-group-with-a-long-name-2")
def long(event: Event[OrderCreated], tx) -> None: ...

@downstream("oil")
def oil(event: Event[OrderCreated], tx) -> None: ...

@downstream("99")
def number(event: Event[OrderCreated], tx) -> None: ...
"""


ADDS = adding(Settings())


def test_each_downstream_has_a_key_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keyed.py").write_text(LOYALTY)
    monkeypatch.chdir(tmp_path)
    own = tuple(f"keyed:{name}" for name in ("points", "long", "oil", "number"))
    adds = adding(Settings(downstreams=(*DEFAULT_DOWNSTREAMS, *own)))
    names = ["order", "inventory", "notifications", *own]
    # l, o, t, p, i are taken: of loyalty y is left, of oil nothing.
    assert {key: role.name for key, role in adds.items()} == dict(zip("oinya12", names, strict=True))
    assert adds["y"].stem == "loyalty"
    assert line(ADDS) == "q quit  l load  +- rate  o/i/n add  t term  k kill -9  p pause  r restart  e log"
    assert "o/i/n/y/a/1/2 add" in line(adds)
    assert len(line(adds)) <= 80


class Answering:
    """Stands for a load, whose orders are all acknowledged."""

    def __init__(self, addresses: Sequence[str], record: Callable[[LoadCall], None], **_: object) -> None:
        self._began = addresses, record

    def run(self, stop: threading.Event) -> None:
        _, record = self._began
        record(LoadCall("key", CallOutcome.ACKNOWLEDGED, "id", None, False, 0, 0, 0))
        assert stop.wait(10)


def test_a_load_waits_while_no_order_service_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "Load", Answering)
    said: list[str] = []
    load = LoadControl(said.append)
    load.follow(["a"])
    assert (str(load), load.finish()) == ("no load", "")
    load.start(["a"])
    load.follow(["a"])
    load.follow([])
    load.follow([])
    assert str(load) == "load waits"
    load.follow(["b"])
    assert str(load) == "load 20/s"
    assert said == [
        "load: 20 orders a second to a",
        "load: waits for an order-service: press o to add one",
        "load: 20 orders a second to b",
    ]
    assert load.finish() == "load: orders 2 acknowledged"
