"""Records that a group never had and never gets: it is said, `doctor` fails, and their rows are published again."""

import json
from typing import Any

from brewctl.delivery.broker import PARTITIONS, Producer, open_admin
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.topics import topics
from brewctl.lab.play.nodes import Node
from brewctl.verify import verify
from tests.conftest import Rig
from tests.integration.http_tools import HTTP, numbers, place
from tests.integration.kafka_tools import finish, remove_records
from tests.integration.outbox_tools import create_order, unpublished

HALF = 12


def publish(rig: Rig, pool: Pool, orders: int) -> None:
    """Create orders and publish their rows."""
    for _ in range(orders):
        create_order(rig)
    publish_waiting(rig, pool)


def publish_everywhere(rig: Rig, pool: Pool) -> int:
    """Publish until each partition has a record, so that a group has an offset in each; return how many rows."""
    rows = 0
    while rig.connection.execute("SELECT count(DISTINCT kafka_partition) FROM outbox").fetchone() != (PARTITIONS,):
        publish(rig, pool, HALF)
        rows += HALF
    return rows


def publish_waiting(rig: Rig, pool: Pool) -> None:
    producer = Producer(rig.settings, node="order-1")
    publisher = Publisher(rig.settings, pool, node="order-1")
    while unpublished(rig):
        publisher.publish_batch(producer)
    producer.close()


def consume(rig: Rig, role: str, *, node: str, effects: int) -> Node:
    """Run a role until it has so many effects, and end it."""
    started = rig.start(node, "consume", role)
    rig.wait(f"{effects} effects", lambda: effects_of(rig, role) == effects)
    assert finish(started) == 0
    return started


def trouble(rig: Rig) -> str:
    (said,) = rig.connection.execute("SELECT string_agg(trouble, '') FROM nodes").fetchone() or ("",)
    return str(said)


def effects_of(rig: Rig, role: str) -> int:
    counts = rig.counts()
    return counts.reservations if role == "inventory" else counts.notifications


def findings(rig: Rig) -> tuple[int, dict[str, dict[str, str]]]:
    done = rig.brewctl("doctor", "--json")
    return done.returncode, {each["check"]: each for each in json.loads(done.stdout)["findings"]}


def inventory_partitions(rig: Rig) -> list[dict[str, Any]]:
    shown = json.loads(rig.brewctl("groups", "--json").stdout)
    (group,) = [group for group in shown if group["name"] == "inventory"]
    return list(group["partitions"])


def test_what_retention_removed_is_told_and_published_again(rig: Rig, pool: Pool) -> None:
    had = publish_everywhere(rig, pool)
    consume(rig, "inventory", node="inventory-1", effects=had)
    publish(rig, pool, HALF)
    every = had + HALF
    remove_records(rig.settings)

    lost = [each for each in inventory_partitions(rig) if each["lost"]]
    assert sum(each["first"] - (each["committed"] or 0) for each in lost) == HALF
    shown = rig.brewctl("groups")
    assert "were removed before it read them" in shown.stderr
    assert "next: brewctl outbox republish --missing" in shown.stderr
    code, found = findings(rig)
    assert code == 1
    assert found["group-inventory"]["verdict"] == "fail"
    assert f"{HALF} published rows never came to it" in found["records-inventory"]["found"]
    assert f"{every} published rows never came to it" in found["records-notifications"]["found"]

    # The consumer goes on at the first record, not in silence.
    node = rig.start("inventory-2", "consume", "inventory", *HTTP)
    with open_admin(rig.settings) as admin:
        ends = {number: end for number, (_, end) in admin.ends(rig.settings.topic).items() if end}
        rig.wait("offsets at the end", lambda: admin.committed("inventory", rig.settings.topic) == ends)
    assert numbers(place(node))['brew_inbox_overtaken_records_total{consumer="inventory"}'] == HALF
    rig.wait("its trouble", lambda: "were gone before the group read them: run `brewctl outbox" in trouble(rig))
    assert finish(node) == 0
    said = [line for line in node.log.read_text().splitlines() if "offset_lost" in line]
    assert len(said) == len(lost)
    assert all("level=error" in line and "republish --missing" in line for line in said)
    # Nothing lags, and the effects are missing all the same.
    code, found = findings(rig)
    assert code == 1
    assert found["records-inventory"]["verdict"] == "fail"
    assert verify(rig.settings, late_s=3600).check("inventory-removed").violations == HALF, "whatever their age"

    refused = rig.brewctl("outbox", "republish", "--missing")
    assert refused.returncode == 2
    assert f"publishes {every} rows again" in refused.stderr
    assert refused.stdout.splitlines() == [
        f"inventory     lacks {HALF:>8}: removed before the group read them",
        f"notifications lacks {every:>8}: removed before the group read them",
    ]
    tried = rig.brewctl("outbox", "republish", "--missing", "--dry-run")
    assert (tried.returncode, tried.stdout.splitlines()[-1]) == (0, f"missing={every}")
    assert unpublished(rig) == []
    done = rig.brewctl("outbox", "republish", "--missing", "--yes")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"republished={every}")
    assert len(unpublished(rig)) == every
    again = rig.brewctl("outbox", "republish", "--missing", "--yes")
    assert (again.returncode, again.stdout) == (0, "republished=0\n")

    publish_waiting(rig, pool)
    last = consume(rig, "inventory", node="inventory-3", effects=every)
    assert last.lines[-1].endswith(f"processed={every} reserved={HALF} skipped={had}")
    consume(rig, "notifications", node="notification-1", effects=every)
    assert verify(rig.settings, late_s=0).ok
    assert findings(rig)[1]["records"]["verdict"] == "ok"


def test_a_topic_made_anew_is_told_and_what_it_lost_is_published_again(rig: Rig, pool: Pool) -> None:
    publish(rig, pool, HALF)
    consume(rig, "inventory", node="inventory-1", effects=HALF)
    publish(rig, pool, HALF)
    with open_admin(rig.settings) as admin:
        admin.delete_topic(rig.settings.topic)
        rig.wait("no topic", lambda: rig.settings.topic not in admin.topics())
    topics.create(rig.settings)
    create_order(rig)
    publish_waiting(rig, pool)
    # This Kafka forgets a topic's offsets with it; after a truncation, and in older ones, they are still there.
    with open_admin(rig.settings) as admin:
        admin.commit("inventory", rig.settings.topic, dict.fromkeys(range(PARTITIONS), 100))
    assert any("was truncated, or made anew" in (each["lost"] or "") for each in inventory_partitions(rig))
    code, found = findings(rig)
    assert code == 1
    assert {"group-inventory", "records-inventory"} <= {
        check for check, each in found.items() if each["verdict"] == "fail"
    }
    node = rig.start("inventory-2", "consume", "inventory")
    rig.wait("the new record", lambda: effects_of(rig, "inventory") == HALF + 1)
    rig.wait("offsets that are there", lambda: not any(each["lost"] for each in inventory_partitions(rig)))
    assert finish(node) == 0
    assert "offset_lost" in node.log.read_text()
    consume(rig, "notifications", node="notification-1", effects=1)
    assert rig.brewctl("outbox", "republish", "--missing", "--yes").returncode == 0
    publish_waiting(rig, pool)
    consume(rig, "inventory", node="inventory-3", effects=2 * HALF + 1)
    consume(rig, "notifications", node="notification-2", effects=2 * HALF + 1)
    assert findings(rig)[1]["records"]["verdict"] == "ok"


def test_rows_are_published_again_by_their_ids(rig: Rig, pool: Pool) -> None:
    publish(rig, pool, 3)
    ids = [str(row_id) for (row_id,) in rig.connection.execute("SELECT id FROM outbox ORDER BY id")]
    create_order(rig)
    (waiting,) = unpublished(rig)
    neither = rig.brewctl("outbox", "republish")
    assert (neither.returncode, "needs ids or --missing" in neither.stderr) == (2, True)
    done = rig.brewctl("outbox", "republish", ids[2], ids[0], str(waiting), "--yes")
    assert (done.returncode, done.stdout) == (1, "republished=2\n")
    assert f"not published: {waiting}: see" in done.stderr
    assert unpublished(rig) == [int(ids[0]), int(ids[2]), waiting]


def test_a_dead_letter_is_not_missing(rig: Rig, pool: Pool) -> None:
    create_order(rig)
    rig.connection.execute("ALTER TABLE inventory_reservations ADD CONSTRAINT never CHECK (false)")
    publish_waiting(rig, pool)
    node = rig.start("inventory-1", "consume", "inventory")
    with open_admin(rig.settings) as admin:
        rig.wait("its offset", lambda: sum(admin.committed("inventory", rig.settings.topic).values()) == 1)
    assert finish(node) == 0
    tried = rig.brewctl("outbox", "republish", "--missing", "--dry-run")
    assert tried.stdout == "missing=0\n"
