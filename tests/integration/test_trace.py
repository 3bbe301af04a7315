"""The life of an order: the whole of it, where an unfinished one stands, and what can't be traced."""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterator

import pytest

from brewctl.config import environment
from brewctl.delivery.schema import setup
from brewctl.overview.standing import OrderView, Standing, look
from tests.conftest import Rig, begin, run
from tests.integration.chain_tools import PROJECTIONS, Chain, Row, open_chain
from tests.integration.kafka_tools import refused_connections
from tests.integration.reading import read_topic

NOWHERE = ("127.0.0.1:1",)


@pytest.fixture(scope="module")
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(servers, tmp_path_factory.mktemp("trace")) as chain:
        yield chain


def looked(chain: Chain, row: Row, *, kafka: bool = True) -> OrderView:
    settings = chain.rig.settings if kafka else dataclasses.replace(chain.rig.settings, brokers=NOWHERE)
    return look(settings, chain.rig.connection, uuid.UUID(row.order_id))


def standings(chain: Chain, row: Row, *, kafka: bool = True) -> dict[str, str]:
    """What is said of an order, and the command that moves it on."""
    return {standing.text: standing.command for standing in looked(chain, row, kafka=kafka).standings}


def of_inventory(chain: Chain, row: Row) -> Standing:
    (standing,) = [each for each in looked(chain, row).standings if "group inventory" in each.text]
    return standing


def node(chain: Chain, name: str, role: str, *, publishes: bool | None) -> None:
    """As if a node were there; None: of the version before, which does not say whether it publishes."""
    chain.execute(
        "INSERT INTO nodes (node_id, role, host, pid, address, started_at, seen_at, publishes)"
        " SELECT %s, %s, 'h', 1, '', seen, seen, %s FROM clock_timestamp() seen",
        name,
        role,
        publishes,
    )


@contextlib.contextmanager
def order_node(chain: Chain) -> Iterator[None]:
    """As if order-1 were there."""
    node(chain, "order-1", "order", publishes=True)
    yield
    chain.execute("DELETE FROM nodes")


def test_an_order_that_is_not_published_says_what_it_waits_for(chain: Chain) -> None:
    row, elsewhere = chain.order(), chain.order(topic=f"{chain.rig.settings.topic}-absent")
    name = f"outbox row {row.outbox_id}"
    nobody = {f"{name} waits: no node runs that would publish it": "brewctl start order"}
    assert standings(chain, row) == standings(chain, row, kafka=False) == nobody
    with order_node(chain):
        assert standings(chain, row) == {f"{name} is to be published by order-1": ""}
        assert standings(chain, row, kafka=False) == {f"{name} waits: kafka {NOWHERE[0]} does not answer": ""}
        ((text, command),) = standings(chain, elsewhere).items()
        assert text.endswith(f"kafka has no topic {chain.rig.settings.topic}-absent")
        assert command == f"brewctl topic create --topic {chain.rig.settings.topic}-absent"

    twin = chain.twin(row)
    chain.execute(
        "UPDATE outbox SET failed_at = clock_timestamp(), failure = 'too large', attempts = 2 WHERE id = %s",
        row.outbox_id,
    )
    stuck = looked(chain, row)
    assert {each.text: each.command for each in stuck.standings} == {
        f"{name} is set aside, refused 2 times: too large": f"brewctl outbox retry {row.outbox_id}",
        f"outbox row {twin.outbox_id} waits behind row {row.outbox_id}": "",
    }
    assert all(each.stuck for each in stuck.standings)
    assert stuck.life.steps()[-1].what == "set aside"
    chain.execute("DELETE FROM outbox WHERE topic = %s OR id IN (%s, %s)", elsewhere.order_id, *stuck_ids(row, twin))
    assert standings(chain, row) == {"it has no outbox row: it will not be published": "brewctl verify"}


def test_a_row_is_published_by_nodes_that_say_they_publish(chain: Chain) -> None:
    row = chain.order()
    name = f"outbox row {row.outbox_id}"
    node(chain, "order-1", "order", publishes=False)
    node(chain, "inventory-1", "inventory", publishes=None)
    assert standings(chain, row) == {f"{name} waits: no node runs that would publish it": "brewctl start publisher"}
    node(chain, "order-2", "order", publishes=None)
    node(chain, "publisher-1", "publisher", publishes=True)
    assert standings(chain, row) == {f"{name} is to be published by order-2 or publisher-1": ""}
    chain.execute("DELETE FROM nodes")
    chain.execute("DELETE FROM outbox WHERE id = %s", row.outbox_id)


def stuck_ids(*rows: Row) -> tuple[int, ...]:
    return tuple(row.outbox_id for row in rows)


def test_a_published_order_says_how_far_each_group_is(chain: Chain) -> None:
    row = chain.order()
    offset = chain.send(row, partition=5)
    chain.commit("inventory", {5: 0})
    undone = "not reserved by group inventory: "
    assert of_inventory(chain, row) == Standing(
        f"{undone}it is next in partition 5, and the group has no member", "brewctl start inventory"
    )
    behind = chain.order()
    chain.send(behind, partition=5)
    text = of_inventory(chain, behind).text
    assert text == f"{undone}it comes after 1 record in partition 5, and the group has no member"

    unasked = looked(chain, row, kafka=False)
    assert (unasked.unknown is not None, len(unasked.life.steps()), len(unasked.standings)) == (True, 3, 2)
    assert all("how far it is can't be known" in each.text for each in unasked.standings)

    chain.commit("inventory", {5: 1})
    where = f"partition 5, offset {offset}"
    again = f"brewctl outbox republish {row.outbox_id}"
    passed = f"{undone.removesuffix(': ')}, which has passed it at {where}: lost"
    assert of_inventory(chain, row) == Standing(passed, again, stuck=True)
    chain.mark(row, partition=5, offset=99)
    gone = f"{undone}its record is no more in the topic, at partition 5, offset 99"
    assert of_inventory(chain, row) == Standing(gone, again, stuck=True)
    chain.execute("UPDATE outbox SET kafka_partition = NULL, kafka_offset = NULL WHERE id = %s", row.outbox_id)
    assert "was not kept" in of_inventory(chain, row).text, "an older version published it"
    chain.execute("UPDATE outbox SET topic = 'old' WHERE id = %s", row.outbox_id)
    assert of_inventory(chain, row).command == f"brewctl trace {row.order_id} --topic old"


def test_a_dead_letter_is_a_step_and_where_the_order_stands(chain: Chain) -> None:
    row = chain.order()
    offset = chain.send(row)
    chain.commit("inventory", {0: offset + 1})
    letter = chain.bury(row, offset)
    standing = of_inventory(chain, row)
    assert standing.text == f"not reserved by group inventory: it is the dead letter 0:{letter}, says the test"
    assert (standing.command, standing.stuck) == (f"brewctl dlq redrive 0:{letter}", True)

    copy = chain.raw(row.key, row.value, row.headers)
    chain.settle(letter, "redriven", place=(0, copy))
    assert of_inventory(chain, row).command == "brewctl start inventory", "the copy is what the group waits for"
    died = [step.detail for step in looked(chain, row).life.steps() if step.what == "died"]
    assert died == [f"letter 0:{letter} of group inventory, redriven to 0@{copy}: says the test"]

    again = chain.bury(row, copy)
    chain.settle(again, "dropped")
    assert of_inventory(chain, row).text.endswith(f"never will be: its dead letter 0:{again} was dropped")
    # It can have no older ones than it is itself, but for its consumer's clock: older ones are not read.
    for age, letters in (("30 minutes", 2), ("2 hours", 0)):
        chain.execute(
            f"UPDATE orders SET created_at = clock_timestamp() + interval '{age}' WHERE id = %s", row.order_id
        )
        assert len(looked(chain, row).life.letters) == letters


def test_copies_that_consumers_skipped_are_steps_of_a_finished_order(chain: Chain) -> None:
    row = chain.order()
    for _ in range(3):
        chain.send(row, partition=3)
    chain.consume(PROJECTIONS[:1])
    chain.send(row, partition=3)
    chain.consume()
    finished = looked(chain, row)
    assert (finished.life.finished, finished.standings) == (True, [])
    skipped = {step.detail for step in finished.life.steps() if step.what == "skipped"}
    assert skipped == {f"3 times more by group {each}, which had it in processed_events" for each in ("inventory", "notifications")}  # fmt: skip  # noqa: E501

    chain.execute("DELETE FROM inventory_reservations WHERE order_id = %s", row.order_id)
    assert "its effect is gone" in of_inventory(chain, row).text


def test_an_id_that_means_no_order_or_several_is_told(chain: Chain) -> None:
    ids = [str(uuid.UUID(int=(0xFACE << 112) + number)) for number in range(4)]
    for order_id in ids:
        chain.execute(
            "INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status)"
            " VALUES (%s, 't', 'c', 1, 'EUR', 'S')",
            order_id,
        )
    several = run("trace", "face", env=chain.rig.env)
    assert (several.returncode, several.stdout) == (1, "")
    newest = ", ".join(ids[:0:-1])
    assert several.stderr == f"brewctl: many orders begin with face: {newest}: give more of the id\n"
    none = run("trace", ids[0].replace("face", "fade"), env=chain.rig.env)
    assert (none.returncode, none.stdout, none.stderr.count("\n")) == (1, "", 1)
    assert none.stderr.startswith(f"brewctl: no order is {ids[0].replace('face', 'fade')}: ")
    completed = {"_BREWCTL_COMPLETE": "complete_bash", "COMP_WORDS": "brewctl trace face", "COMP_CWORD": "2"}
    assert run(env={**chain.rig.env, **completed}).stdout.split() == ids[::-1]


def test_the_exit_code_says_what_is_known_and_what_is_finished(chain: Chain) -> None:
    row = chain.order()
    chain.send(row)
    env = environment(dataclasses.replace(chain.rig.settings, brokers=NOWHERE))
    done = run("trace", row.order_id, env=env)
    assert (done.returncode, "published" in done.stdout) == (3, True)
    assert done.stderr.splitlines()[-1].startswith("brewctl: kafka 127.0.0.1:1 does not answer")
    late = run("trace", row.order_id, "--follow", "--timeout", "0", env=chain.rig.env)
    assert (late.returncode, "is not finished after 0 s: run `brewctl start inventory`" in late.stderr) == (1, True)
    chain.consume()
    done = run("trace", row.order_id, env=env)
    assert (done.returncode, "finished after" in done.stdout) == (0, True)
    assert "dead letters, if any, are not known: kafka 127.0.0.1:1 does not answer" in done.stderr


def test_a_schema_of_an_older_version_is_named_and_brought_up_to_date(chain: Chain) -> None:
    connection = chain.rig.connection
    with connection.transaction(force_rollback=True):
        connection.execute("ALTER TABLE outbox DROP COLUMN kafka_partition, DROP COLUMN kafka_offset")
        connection.execute("ALTER TABLE processed_events DROP COLUMN duplicates, DROP COLUMN duplicate_at")
        assert {"outbox.kafka_offset", "processed_events.duplicate_at"} <= {*setup.missing_tables(connection)}
        setup.initialize(connection)
        assert setup.missing_tables(connection) == []


def test_an_order_is_followed_through_its_whole_life(rig: Rig, servers: dict[str, str]) -> None:
    _, address = rig.serve("order-1")
    rig.start("inventory-1", "consume", "inventory")
    created = rig.brewctl("create-order", "--customer", "c1", "--addr", address)
    order_id = created.stdout.strip()

    partition, offset = place(rig)
    following = begin("trace", f"order-{order_id[:13]}", "--follow", env=rig.env)
    assert following.stderr is not None
    assert following.stderr.readline() == (
        f"not notified by group notifications: it is next in partition {partition}, and the group has no member\n"
    )
    with refused_connections(rig, servers, "trace"):
        assert following.stderr.readline().endswith("; waiting for it …\n")
        assert rig.brewctl("trace", order_id).returncode == 3
    rig.start("notification-1", "consume", "notifications")
    told, noted = following.communicate(timeout=60)
    assert (following.returncode, "waiting for it" in noted) == (0, False), "once an outage"
    assert told.splitlines()[0] == f"order {order_id}  450 cents EUR  customer c1"
    assert told.splitlines()[-1].startswith("finished after ")
    assert all(len(line) <= 80 for line in told.splitlines())

    document = json.loads(rig.brewctl("trace", order_id, "--json").stdout)
    assert (document["order_id"], document["tenant_id"], document["finished"]) == (order_id, "brew", True)
    steps = {step["what"]: step for step in document["steps"]}
    known = rig.connection.execute("SHOW track_commit_timestamp").fetchone() == ("on",)
    assert steps.keys() == {"created", "committed" if known else "written", "published", "reserved", "notified"}
    assert (steps["published"]["partition"], steps["published"]["offset"]) == (partition, offset)
    assert [steps[what]["node"] for what in ("published", "reserved", "notified")] == [
        "order-1", "inventory-1", "notification-1",
    ]  # fmt: skip

    done = rig.brewctl("create-order", "--customer", "c2", "--addr", address, "--trace")
    assert (done.returncode, "finished after" in done.stdout) == (0, True), done.stderr


def place(rig: Rig) -> tuple[int, int]:
    """Where the first order's record is."""
    record = next(record for record in read_topic(rig.settings) if b"c1" in (record.value or b""))
    return record.partition, record.offset
