"""A downstream of a user's own, named by BREW_DOWNSTREAMS or --downstream: every tool knows it like the story's."""

import dataclasses
import json
import uuid
from collections.abc import Iterator

import pytest

from brewctl import config, overview
from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.repair import republish
from brewctl.errors import BrewError, UsageError
from brewctl.overview.standing import OrderView, look
from tests.conftest import run
from tests.integration.chain_tools import PROJECTIONS, Chain, Row, open_chain

MODULE = """
from brewctl.delivery.downstream import downstream

@downstream("loyalty", events=("order.created",), done="SELECT order_id FROM points;")
def points(event, tx):
    tx.execute("INSERT INTO points VALUES (%s, %s)", (event.data.order_id, event.data.amount_cents // 100))

@downstream("audit", events=("order.created", "order.cancelled"))
def audit(event, tx):
    pass

@downstream("loyalty", events=("order.created",))
def again(event, tx):
    pass

@downstream("torn", events=("order.created",), done="SELECT order_id FROM torn")
def torn(event, tx):
    pass
"""
NAMES = ("inventory", "notifications", "loyalty_of_mine:points")


@pytest.fixture(scope="module")
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "loyalty_of_mine.py").write_text(MODULE)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_chain(servers, tmp_path_factory.mktemp("own-downstream")) as chain,
    ):
        patch.syspath_prepend(str(folder))
        chain.rig.settings = configured(chain, *NAMES)
        chain.rig.env |= {"PYTHONPATH": str(folder), "BREW_DOWNSTREAMS": ",".join(NAMES)}
        chain.execute("CREATE TABLE points (order_id uuid PRIMARY KEY, points int NOT NULL)")
        yield chain


def configured(chain: Chain, *names: str) -> Settings:
    downstreams = config.resolve({"downstreams": ",".join(names)}, {}, {}).downstreams
    return dataclasses.replace(chain.rig.settings, downstreams=downstreams)


def loyalty() -> Downstream:
    return registry.find("loyalty_of_mine:points")


def looked(chain: Chain, row: Row) -> OrderView:
    return look(chain.rig.settings, chain.rig.connection, uuid.UUID(row.order_id))


def cancelled(chain: Chain, row: Row) -> Row:
    """Commit an event of another type behind the first, which not every downstream takes."""
    twin = chain.twin(row)
    chain.execute("UPDATE outbox SET event_type = 'order.cancelled' WHERE id = %s", twin.outbox_id)
    return twin


def test_an_order_waits_for_it_and_shows_what_it_did(chain: Chain) -> None:
    row = chain.order()
    offset = chain.send(row, partition=2)
    chain.consume(PROJECTIONS)
    (standing,) = looked(chain, row).standings
    assert standing.text == "not done by group loyalty: it is next in partition 2, and the group has no member"
    assert standing.command == "brewctl start loyalty_of_mine:points"
    chain.commit("loyalty", {2: offset + 1})
    (passed,) = looked(chain, row).standings
    assert (passed.stuck, "which has passed it" in passed.text) == (True, True)

    chain.ends["loyalty"] = {}
    chain.consume((loyalty(),))
    done = looked(chain, row)
    assert (done.life.finished, done.standings) == (True, [])
    ((at, detail),) = [(step.at, step.detail) for step in done.life.steps() if step.what == "done"]
    (dedup,) = [row.processed_at for row in done.life.dedup if row.group == "loyalty"]
    assert (at, detail) == (dedup, "by group loyalty")
    told = chain.rig.brewctl("trace", row.order_id)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1].endswith(": published, reserved, notified and done by loyalty once")
    assert "by inventory, group inventory" in told.stdout, "who did it is in the effect's own row"
    story = run("trace", row.order_id, "--downstream", "inventory", env=chain.rig.env).stdout
    assert story.splitlines()[-1].endswith(": published and reserved once"), "a flag wins over the variable"

    chain.execute("DELETE FROM points WHERE order_id = %s", row.order_id)
    (gone,) = looked(chain, row).standings
    assert gone.text == "not done: group loyalty has handled it, and its effect is gone"


def test_an_event_of_a_type_that_it_does_not_take_is_not_waited_for(chain: Chain) -> None:
    row = chain.order()
    chain.send(row)
    twin = cancelled(chain, row)
    chain.send(twin)
    waiting = [standing.text for standing in looked(chain, row).standings]
    assert sum("group loyalty" in text for text in waiting) == 1
    assert sum("group inventory" in text for text in waiting) == 2
    page = [row for page in republish.Search(chain.rig.settings, chain.rig.connection).pages() for row in page]
    assert page == []
    bounds = chain.reader.bounds(chain.rig.settings.topic)
    for group in ("inventory", "notifications", "loyalty"):
        chain.commit(group, {partition: end for partition, (_, end) in bounds.items() if end})
    missing = [row for page in republish.Search(chain.rig.settings, chain.rig.connection).pages() for row in page]
    assert {(each.id, each.group) for each in missing if each.id in (row.outbox_id, twin.outbox_id)} == {
        (row.outbox_id, "inventory"),
        (row.outbox_id, "notifications"),
        (row.outbox_id, "loyalty"),
        (twin.outbox_id, "inventory"),
        (twin.outbox_id, "notifications"),
    }


def test_its_effects_are_counted_behind_the_four(chain: Chain) -> None:
    own = configured(chain, *NAMES, "loyalty_of_mine:audit")
    chain.execute("TRUNCATE points; INSERT INTO points VALUES (gen_random_uuid(), 1), (gen_random_uuid(), 2)")
    chain.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('audit', 1), ('audit', 2), ('audit', 3)")
    counts = overview.counts(chain.rig.connection, registry.further(own))
    story = overview.counts(chain.rig.connection)
    assert str(counts) == f"{story} loyalty=2 audit=3"
    assert list(counts.story()) == ["orders", "outbox_unpublished", "reservations", "notifications"]
    assert chain.rig.brewctl("counts").stdout == f"{story} loyalty=2\n"
    assert json.loads(chain.rig.brewctl("counts", "--json").stdout)["downstreams"] == {"loyalty": 2}
    assert chain.rig.brewctl("counts", "--downstream", "inventory").stdout == f"{story}\n"


@pytest.mark.parametrize("command", ["counts", "trace"])
def test_a_done_query_that_fails_is_one_line(chain: Chain, command: str) -> None:
    arguments = (command, *([chain.order().order_id] if command == "trace" else []))
    done = chain.rig.brewctl(*arguments, "--downstream", "loyalty_of_mine:torn")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    said = 'brewctl: the `done` query of torn fails: relation "torn" does not exist: '
    assert done.stderr.startswith(said), done.stderr
    assert "brewctl db init MODULE:NAME" in done.stderr
    with pytest.raises(BrewError, match="done` query of torn"):
        overview.counts(chain.rig.connection, [registry.find("loyalty_of_mine:torn")])


def test_its_group_is_shown_completed_and_mended(chain: Chain) -> None:
    shown = json.loads(chain.rig.brewctl("groups", "--json").stdout)
    assert [group["name"] for group in shown][:3] == ["inventory", "notifications", "loyalty"]
    few = json.loads(chain.rig.brewctl("groups", "--json", "--downstream", "loyalty_of_mine:points").stdout)
    assert few[0]["name"] == "loyalty"
    env = {**chain.rig.env, "_BREWCTL_COMPLETE": "complete_bash", "COMP_WORDS": "brewctl start l", "COMP_CWORD": "2"}
    assert run(env=env).stdout.split() == ["loyalty_of_mine:points"]
    away = {**env, "BREW_KAFKA_BROKERS": "127.0.0.1:1", "COMP_WORDS": "brewctl groups reset l", "COMP_CWORD": "3"}
    assert run(env={**away, "BREW_GROUP_PREFIX": "l."}).stdout.split() == [
        "l.inventory",
        "l.notifications",
        "l.loyalty",
    ]
    findings = json.loads(chain.rig.brewctl("doctor", "--json").stdout)["findings"]
    (own,) = [finding for finding in findings if finding["check"] == "group-loyalty"]
    assert own["mend"] == "run `brewctl start loyalty_of_mine:points`"


def test_two_downstreams_of_one_group_are_refused(chain: Chain) -> None:
    twice = configured(chain, "loyalty_of_mine:points", "loyalty_of_mine:again")
    with pytest.raises(
        UsageError, match="loyalty_of_mine:points and loyalty_of_mine:again have the same group loyalty"
    ):
        registry.configured(twice)
    done = chain.rig.brewctl(
        "groups", "--downstream", "loyalty_of_mine:points", "--downstream", "loyalty_of_mine:again"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_name_that_is_no_downstream_is_one_line(chain: Chain) -> None:
    done = chain.rig.brewctl("counts", "--downstream", "loyalty.points")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'loyalty.points' is not MODULE:NAME" in done.stderr
