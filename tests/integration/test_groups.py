"""`brewctl groups`: what it shows of real groups, and where it sends them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kafka import KafkaProducer, errors

from brewctl.delivery.broker import Admin, open_admin
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.repair import group_reset
from brewctl.delivery.repair.group_reset import Target, Where
from brewctl.errors import BrewError
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import finish, good_record

START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
RECORDS = {0: 5, 1: 3, 3: 4}  # by partition


@pytest.fixture
def ends(rig: Rig) -> dict[int, int]:
    """Records a second apart; the ends of all partitions."""
    producer = KafkaProducer(**connection(rig.settings, name="test"))
    for partition, count in RECORDS.items():
        for second in range(count):
            good = good_record()
            written_ms = int(START.timestamp() + second) * 1000
            place = {"partition": partition, "timestamp_ms": written_ms}
            producer.send(rig.settings.topic, good.value, good.key, headers=good.headers, **place)
    producer.close()
    return {partition: RECORDS.get(partition, 0) for partition in range(6)}


@pytest.fixture
def admin(rig: Rig) -> Iterator[Admin]:
    with open_admin(rig.settings) as admin:
        yield admin


def groups(rig: Rig) -> dict[str, Any]:
    shown = rig.brewctl("groups", "--json")
    assert shown.returncode == 0, shown.stderr
    return {group["name"]: group for group in json.loads(shown.stdout)}


def reset(rig: Rig, *arguments: str) -> dict[str, Any]:
    done = rig.brewctl("groups", "reset", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def test_a_group_from_its_members_to_its_reset(rig: Rig, admin: Admin, ends: dict[int, int]) -> None:
    topic = rig.settings.topic
    nodes = [rig.start(f"inventory-{number}", "consume", "inventory") for number in (1, 2)]
    rig.wait(
        "both own partitions", lambda: all(member.partitions for member in admin.group("inventory", topic).members)
    )
    rig.wait("committed offsets", lambda: sum(admin.committed("inventory", topic).values()) == sum(ends.values()))

    group = groups(rig)["inventory"]
    assert (group["state"], group["assignor"], group["lag"]) == ("Stable", "roundrobin", 0)
    assert {member["client_id"]: member["partitions"] for member in group["members"]} == {
        "inventory-1": [0, 2, 4],
        "inventory-2": [1, 3, 5],
    }
    for partition in group["partitions"]:
        number = partition["partition"]
        assert partition["owner"] == ("inventory-2" if number % 2 else "inventory-1")
        assert (partition["first"], partition["end"], partition["lag"]) == (0, ends[number], 0)
        assert partition["committed"] == (ends[number] or None)

    refused = rig.brewctl("groups", "reset", "inventory", "--to", "earliest", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    says = "brewctl: consumer group inventory has live members: inventory-1, inventory-2: stop them first\n"
    assert refused.stderr == says
    # Kafka refuses too, where one has come since it was looked.
    with pytest.raises(BrewError, match="has live members"):
        admin.commit("inventory", topic, {0: 0})
    assert [finish(node) for node in nodes] == [0, 0]

    unasked = rig.brewctl("groups", "reset", "inventory", "--to", "earliest")
    assert unasked.returncode == 2
    assert "read 12 records again: add --yes" in unasked.stderr
    assert admin.committed("inventory", topic) == RECORDS

    done = rig.brewctl("groups", "reset", "inventory", "--to", "earliest", "--yes")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split() == ["0", "5", "0", "-5"]
    assert done.stdout.splitlines()[-1] == "inventory: again=12 skipped=0"
    assert done.stderr == "consumers see 12 records again; the inbox skips what it knows\n"
    lines = [line.split() for line in rig.brewctl("groups").stdout.splitlines()]
    assert lines[1] == ["inventory", "Empty", "0", "-", "0", "5", "5"]

    again = rig.start("inventory-3", "consume", "inventory")
    rig.wait("committed offsets", lambda: sum(admin.committed("inventory", topic).values()) == sum(ends.values()))
    assert finish(again) == 0
    assert again.lines[-1] == "[inventory-3] inventory-service stopped. processed=12 reserved=0 skipped=12"
    assert rig.counts().reservations == 12


def test_every_place_that_a_group_can_be_sent_to(rig: Rig, admin: Admin, ends: dict[int, int]) -> None:
    topic = rig.settings.topic
    name = f"{topic}-audit"
    admin.commit(name, topic, {0: 2, 3: 4})
    try:
        assert groups(rig)[name]["lag"] == 3 + 3 + 0  # one that has no offset begins at the first record

        plan = reset(rig, name, "--to", "latest", "--dry-run")
        assert (plan["again"], plan["skipped"], plan["dry_run"]) == (0, 6, True)
        assert admin.committed(name, topic) == {0: 2, 3: 4}

        # A second and a half after the first record: the third, or the end where there is none so young.
        plan = reset(rig, name, "--to", (START + timedelta(seconds=1.5)).isoformat(), "--yes")
        assert (plan["again"], plan["skipped"]) == (2, 2)
        assert admin.committed(name, topic) == {0: 2, 1: 2, 2: 0, 3: 2, 4: 0, 5: 0}
        reset(rig, name, "--to", (START + timedelta(seconds=4)).isoformat(), "--yes")
        assert admin.committed(name, topic) == {**ends, 0: 4}

        done = rig.brewctl("groups", "reset", name, "--to", "4", "--yes")
        assert done.returncode == 0
        assert "offset 4 is not in partitions [1, 2, 4, 5]: the nearest is taken\n" in done.stderr
        assert admin.committed(name, topic) == {**ends, 0: 4}
        planned = group_reset.plan(admin, name, topic, Target(Where.LATEST))
        admin.commit(name, topic, {3: 1})  # as a consumer that came and went while somebody was asked
        with pytest.raises(BrewError, match=r"has moved meanwhile, in partitions \[3\]"):
            group_reset.reset(admin, name, topic, planned)
        reset(rig, name, "--to", "latest", "--yes")
        assert admin.committed(name, topic) == ends
    finally:
        admin._client.delete_consumer_groups([name])
    unknown = rig.brewctl("groups", "reset", "no\x1b[31mbody\n", "--to", "latest", "--yes")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "brewctl: no consumer group no\\x1b[31mbody\\n in kafka: see `brewctl groups`\n"


def test_what_kafka_says_of_brokers_and_topics(rig: Rig, admin: Admin) -> None:
    brokers = admin.brokers()
    assert all(broker.address.rpartition(":")[2].isdigit() for broker in brokers)
    ids = {broker.node_id for broker in brokers}
    for number, partition in enumerate(admin.describe(rig.settings.topic)):
        assert partition.partition == number
        assert partition.leader in partition.isr
        assert set(partition.isr) <= set(partition.replicas) <= ids
    assert admin.configuration(rig.settings.topic)["min.insync.replicas"] == str(min(2, len(ids)))
    for ask in (admin.describe, admin.configuration):
        with pytest.raises(BrewError, match="topic nowhere missing"):
            ask("nowhere")
    missing = rig.brewctl("groups", "--topic", "nowhere")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "brewctl: topic nowhere missing in kafka: run `brewctl topic create`\n"
    # A broker that is not there is not waited for without end.
    with open_admin(limited(rig.settings, kafka_connect_s=1.0)) as hurried, pytest.raises(errors.NodeNotReadyError):
        hurried._client.list_offsets(rig.settings.topic, {0: 4711}, [0])
