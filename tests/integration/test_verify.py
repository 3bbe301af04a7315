"""`brewctl verify`: silent about everything that may happen, and never about what may not."""

import dataclasses
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from brewctl.config import Settings
from brewctl.delivery import events, registry
from brewctl.delivery.broker import Reader
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.verify import Verification
from brewctl.verify import verify as verify_chain
from tests.conftest import Rig, run
from tests.integration.chain_tools import Chain, broken, open_chain, other_event
from tests.integration.faults import Faults, spoil
from tests.integration.kafka_tools import good_record
from tests.integration.outbox_tools import mark_published


@pytest.fixture
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        yield chain


def verify(settings: Settings, *, late_s: float = 0) -> Verification:
    """The tests' orders are young: nothing is on its way here unless a test says so."""
    return verify_chain(settings, late_s=late_s)


# What may happen


def test_a_chain_with_everything_that_may_happen_verifies(chain: Chain) -> None:
    rows = [chain.order() for _ in range(6)]
    for partition, row in enumerate(rows):
        chain.send(row, partition=partition)
    chain.send(rows[0])
    chain.send(rows[0], node="order-2")
    chain.send(rows[1], partition=1, node="order-2")
    chain.raw(*other_event())
    chain.raw(None, None, [])
    chain.raw(b"key", b"rubbish", rows[0].headers)
    chain.consume()
    # A letter of a record that could be read all the same, once redriven, once dropped, once there twice.
    chain.send(rows[2], partition=2)
    chain.send(rows[2], partition=2)
    place = chain.send(rows[0])
    chain.settle(chain.bury(rows[0], 0), "redriven", place=(0, place))
    chain.settle(chain.bury(rows[0], 0, group="notifications"), "dropped")
    chain.bury(rows[0], 0, group="notifications")
    chain.consume()

    found = verify(chain.rig.settings)
    assert broken(found) == {}
    assert found.ok
    facts = found.facts
    assert (facts.orders, facts.outbox_rows, facts.published, facts.set_aside) == (6, 6, 6, 0)
    assert (facts.records, facts.events, facts.other_types, facts.unreadable) == (15, 6, 1, 2)
    assert facts.repeats == 6
    assert (facts.repeats_same_node, facts.repeats_other_node, facts.repeats_redriven) == (3, 2, 1)
    assert facts.dead_letters == {
        "inventory": {"open": 2, "redriven": 1, "dropped": 0},
        "notifications": {"open": 3, "redriven": 0, "dropped": 1},
    }
    assert facts.dead_letters_repeated == 1
    assert facts.lag == {group: dict.fromkeys(range(6), 0) for group in ("inventory", "notifications")}

    shown = chain.rig.brewctl("verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(len(line) <= 80 for line in shown.stdout.splitlines()[:-1])
    assert "\x1b" not in shown.stdout
    assert "6 repeats" in shown.stdout
    assert shown.stdout.splitlines()[-1] == (
        "verdict: every order was published, reserved and notified exactly once"
        " (6 orders, 6 repeats in the topic, 5 open dead letters)"
    )


def test_events_of_other_services_are_compared_with_their_rows(chain: Chain) -> None:
    chain.send(chain.order())

    def other(outbox_id: int, event_id: object, **known: str) -> list[tuple[str, bytes]]:
        named = {"tenant_id": "tea", "trace_id": "t", "content_type": "application/json", "seq": 1} | known
        return events.headers_for(outbox_id, "stock-1", "stock.counted", node="order-1", event_id=event_id, **named)  # type: ignore[arg-type]

    ((outbox_id,),) = chain.execute(
        "SELECT outbox_add(%s, 'stock-1', 'stock.counted', 'x', 'tea', 't', content_type => 'application/json')",
        chain.rig.settings.topic,
    ).fetchall()
    ((event_id,),) = chain.execute("SELECT event_id FROM outbox WHERE id = %s", outbox_id).fetchall()
    at = chain.raw(b"stock-1", b"x", other(outbox_id, event_id))
    mark_published(chain.rig.connection, [outbox_id], offset=at)
    chain.raw(b"stock-2", b"y", other(999_999, uuid.uuid4()))  # from another database
    chain.consume()
    found = verify(chain.rig.settings)
    assert broken(found) == {}
    assert (found.facts.events, found.facts.other_types, found.check("wrong-headers").examined) == (2, 2, 2)

    chain.raw(b"stock-1", b"x", other(outbox_id, event_id, tenant_id="coffee"))
    chain.raw(b"stock-1", b"z", other(outbox_id, event_id))
    assert broken(verify(chain.rig.settings)) == {"wrong-headers": 1, "wrong-payload": 1}


def test_a_cancelled_order_verifies_and_is_on_its_way_before(chain: Chain) -> None:
    row = chain.order()
    chain.send(row)
    chain.consume()
    cancelled = chain.cancel(row)
    assert broken(verify(chain.rig.settings, late_s=60)) == {}
    chain.send(cancelled)
    assert broken(verify(chain.rig.settings, late_s=60)) == {}
    assert broken(verify(chain.rig.settings)) == {"inventory-state": 1, "notifications-state": 1}
    chain.consume()
    assert broken(verify(chain.rig.settings)) == {}


@pytest.mark.parametrize(("done", "says"), [("SELECT 1", "cannot cast"), ("SELECT id FROM nowhere", "does not exist")])
def test_a_done_query_that_fails_is_named(chain: Chain, monkeypatch: pytest.MonkeyPatch, done: str, says: str) -> None:
    loyalty = Downstream("loyalty", handler=print, events=("order.created",), done=done)
    monkeypatch.setattr(registry, "configured", lambda _settings: (loyalty,))
    with pytest.raises(BrewError, match=f"the `done` query of downstream loyalty fails: .*{says}"):
        verify(dataclasses.replace(chain.rig.settings, downstreams=("mine:loyalty",)))


def test_a_downstream_without_a_done_query_is_checked_by_its_dedup_rows(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    loyalty = Downstream("loyalty", handler=lambda _event, _tx: None, events=("order.created",))
    monkeypatch.setattr(registry, "configured", lambda _settings: (loyalty,))
    row = chain.order()
    chain.send(row)
    chain.consume([loyalty])
    found = verify(dataclasses.replace(chain.rig.settings, downstreams=("mine:loyalty",)))
    assert broken(found) == {}
    assert [check.name for check in found.checks if "loyalty" in check.name] == [
        "loyalty-dedup",
        "loyalty-sequence",
        "loyalty-overtaken",
        "loyalty-removed",
        "loyalty-offsets",
    ]
    chain.execute("DELETE FROM processed_events")
    assert broken(verify(dataclasses.replace(chain.rig.settings, downstreams=("mine:loyalty",)))) == {
        "loyalty-offsets": 1
    }


def test_it_is_sound_while_everything_moves(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders make their whole way between any two looks, and none of them looks lost, strange or too early."""
    chain.send(chain.order())
    chain.consume()
    bounds = Reader.bounds

    def busy(reader: Reader, topic: str) -> dict[int, tuple[int, int]]:
        def move() -> None:
            if topic == chain.rig.settings.topic and not moving:
                moving.append(topic)
                chain.send(chain.order())
                chain.raw(b"key", b"rubbish", good_record().headers)
                chain.consume()
                moving.clear()

        move()
        ends = bounds(reader, topic)
        move()
        return ends

    moving: list[str] = []
    monkeypatch.setattr(Reader, "bounds", busy)
    found = verify(chain.rig.settings)
    assert broken(found) == {}
    assert (found.facts.orders, found.facts.events) == (1, 2)
    assert found.check("unlike-order").examined == 2


def test_a_topic_without_its_beginning_proves_what_it_can(chain: Chain) -> None:
    processed, unread, kept = (chain.order() for _ in range(3))
    chain.send(processed)
    chain.consume()
    chain.send(kept)
    chain.consume()
    chain.delete_records(1)
    with pytest.raises(BrewError, match="were removed while"):
        list(chain.reader.read(chain.rig.settings.topic, {0: (0, 1)}))
    found = verify(chain.rig.settings)
    assert broken(found).keys() == {"unpublished", "inventory-missing", "notifications-missing"}  # `unread` waits
    assert (found.facts.removed, found.facts.removed_events) == (1, 1)

    end = chain.send(unread)
    chain.delete_records(end + 1)
    (lost,) = verify(chain.rig.settings).check("lost").offenders
    assert lost.startswith(f"outbox {unread.outbox_id} ")
    assert "1 published rows are known" not in chain.rig.brewctl("verify").stdout


# What may not


@pytest.fixture(scope="module")
def spoilt(
    servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Chain, Verification, Faults]]:
    """One chain with every fault, each of an order of its own, and what verify says of it."""
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        faults = spoil(chain)
        yield chain, verify(chain.rig.settings), faults


def test_every_fault_is_named(spoilt: tuple[Chain, Verification, Faults]) -> None:
    _, found, faults = spoilt
    for name, fault in faults.items():
        offenders = found.check(fault.check).offenders
        assert [text for text in offenders if re.search(fault.says, text)], (name, fault, offenders)


def test_nothing_else_is_named(spoilt: tuple[Chain, Verification, Faults]) -> None:
    _, found, faults = spoilt
    assert broken(found) == Counter(fault.check for fault in faults.values())
    # Of parked events test_verify_parked is, and of removed ones test_lost_records.
    asked = {check.name for check in found.checks if not check.name.endswith(("-overtaken", "-removed"))}
    assert asked == set(broken(found)), "a check that no fault was made for"


def test_the_binary_names_them_and_exits_1(spoilt: tuple[Chain, Verification, Faults]) -> None:
    chain, found, _ = spoilt
    shown = chain.rig.brewctl("verify", "--late", "0")
    assert (shown.returncode, shown.stderr) == (1, "")
    lines = shown.stdout.splitlines()
    assert lines[-1].startswith("verdict: FAILED: event-per-order 5, order-per-event 1, numbered 1, ")
    assert all(f"  {offender}" in lines for check in found.checks for offender in check.offenders)

    told = chain.rig.brewctl("verify", "--late", "0", "--json")
    assert (told.returncode, told.stderr) == (1, "")
    answer = json.loads(told.stdout)
    assert answer["ok"] is False
    assert answer["verdict"] == lines[-1]
    assert answer["checks"] == [asdict(check) for check in found.checks]
    timed = {"snapshot_s": answer["facts"]["snapshot_s"], "oldest_s": answer["facts"]["oldest_s"]}
    assert answer["facts"] == json.loads(json.dumps(asdict(found.facts))) | timed


@pytest.mark.parametrize("name", ["BREW_DATABASE_URL", "BREW_KAFKA_BROKERS"])
def test_a_server_that_is_away(spoilt: tuple[Chain, Verification, Faults], name: str) -> None:
    nowhere = {"BREW_DATABASE_URL": "postgresql://brew@127.0.0.1:1/brew", "BREW_KAFKA_BROKERS": "127.0.0.1:1"}[name]
    shown = run("verify", env={**spoilt[0].rig.env, name: nowhere})
    assert (shown.returncode, shown.stdout) == (3, "")
    (line,) = shown.stderr.splitlines()
    assert "127.0.0.1:1" in line


# With the roles


def test_it_waits_until_the_roles_are_done(rig: Rig) -> None:
    shown = rig.brewctl("verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.endswith("\nverdict: nothing to verify: there is no order yet\n")

    _, address = rig.serve()
    rig.start("inventory-1", "consume", "inventory")
    rig.brewctl("create-order", "--customer", "c1", "--count", "20", "--addr", address)
    shown = rig.brewctl("verify", "--wait", "0.5")
    assert shown.returncode == 0
    assert "still on its way after 0.5 s: " in shown.stderr
    assert "notifications lags by 20\n" in shown.stderr
    assert "\nverdict: no promise is broken; on the way: 20 unread by notifications, the oldest for " in shown.stdout
    shown = rig.brewctl("verify", "--late", "0")
    assert shown.returncode == 1
    assert "\nnotifications-missing: 20 of 20\n" in shown.stdout
    told = re.findall(r"the group has not come to outbox (\d+) at \d@\d+ yet\n", shown.stdout)
    assert told == ["1", "2", "3", "4", "5"]
    assert "\n  and 15 more\n" in shown.stdout

    rig.start("notification-1", "consume", "notifications")
    shown = rig.brewctl("verify", "--wait", "30")
    assert (shown.returncode, shown.stderr) == (0, "")
    verdict = "verdict: every order was published, reserved and notified exactly once (20 orders)"
    assert shown.stdout.splitlines()[-1] == verdict
    shown = rig.brewctl("verify", "--quiet")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
