"""How long the topic keeps its records: `topic create --keep`, `topic keep`, and what `doctor` finds of it."""

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator, Mapping

import pytest

from brewctl.delivery.broker import Producer, Record, open_admin
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import good_record, remove_records
from tests.integration.outbox_tools import create_order

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("keeping")) as rig:
        yield rig


@pytest.fixture
def topic(rig: Rig) -> Iterator[str]:
    """A topic that is not there yet."""
    name = f"keep-{uuid.uuid4().hex[:12]}"
    yield name
    with open_admin(rig.settings) as admin:
        for each in (name, f"{name}.dlq"):
            admin.delete_topic(each)


def in_force(rig: Rig, topic: str) -> dict[str, tuple[str, str]]:
    shown = json.loads(rig.brewctl("topic", "keep", "--json", "--topic", topic).stdout)
    assert shown["topic"] == topic
    return {name: (each["value"], each["from"]) for name, each in shown["settings"].items()}


def configure(rig: Rig, topic: str, **wanted: str) -> None:
    with open_admin(rig.settings) as admin:
        admin.configure(topic, {name.replace("_", "."): value for name, value in wanted.items()})


def found(rig: Rig, **variables: str) -> Mapping[str, tuple[str, str, str]]:
    """What `doctor` says: verdict, what it found, and what mends it, by check."""
    rig.env.update(variables)
    findings = json.loads(rig.brewctl("doctor", "--json").stdout)["findings"]
    return {each["check"]: (each["verdict"], each["found"], each["mend"]) for each in findings}


def test_a_topic_is_created_with_its_time_and_dead_letters_stay(rig: Rig, topic: str) -> None:
    assert rig.brewctl("topic", "create", "--topic", topic).returncode == 0
    assert in_force(rig, topic)["retention.ms"] == (str(7 * DAY_MS), "topic")
    assert in_force(rig, topic)["segment.ms"] == (str(DAY_MS), "topic")
    assert in_force(rig, topic)["retention.bytes"] == ("-1", "topic")
    assert in_force(rig, topic)["message.timestamp.type"] == ("CreateTime", "default")
    assert in_force(rig, f"{topic}.dlq")["retention.ms"] == ("-1", "topic")
    again = rig.brewctl("topic", "create", "--keep", "36h", "--topic", topic)
    assert again.returncode == 0
    assert "the topic keeps its records as long as before: `brewctl topic keep 36h` changes that" in again.stderr
    assert in_force(rig, topic)["retention.ms"] == (str(7 * DAY_MS), "topic")


def test_a_change_leaves_what_else_is_set_and_a_shorter_time_is_asked_for(rig: Rig, topic: str) -> None:
    assert rig.brewctl("topic", "create", "--keep", "forever", "--topic", topic).returncode == 0
    configure(rig, topic, max_message_bytes="2000000")
    shorter = rig.brewctl("topic", "keep", "30", "--topic", topic)
    assert shorter.returncode == 2
    assert f"this removes the records of {topic} that are older than 30d: add --yes" in shorter.stderr
    assert in_force(rig, topic)["retention.ms"] == ("-1", "topic")
    done = rig.brewctl("topic", "keep", "30", "--yes", "--topic", topic)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == ["retention.ms", "30d", "set", "on", "the", "topic"]
    longer = rig.brewctl("topic", "keep", "forever", "--topic", topic)
    assert (longer.returncode, longer.stderr) == (0, "")
    assert in_force(rig, topic)["segment.ms"] == (str(7 * DAY_MS), "default")
    with open_admin(rig.settings) as admin:
        assert admin.configuration(topic)["max.message.bytes"] == "2000000"


def test_unread_records_that_a_shorter_time_removes_are_counted(rig: Rig, topic: str) -> None:
    assert rig.brewctl("topic", "create", "--topic", topic).returncode == 0
    send_old(rig, topic, age_ms=5 * DAY_MS)
    with open_admin(rig.settings) as admin:
        ((at, _),) = [(partition, end) for partition, (_, end) in admin.ends(topic).items() if end]
        admin.commit("inventory", topic, {at: 2})
    said = rig.brewctl("topic", "keep", "1d", "--topic", topic).stderr
    assert "older than 1d, of them unread: 1 by inventory, 3 by notifications: add --yes" in said
    checks = found(rig, BREW_TOPIC=topic)
    assert checks["keeping"][0] == "ok"
    assert checks["keeping-inventory"][:2] == (
        "warn",
        "1 unread record is older than 84h, and will be removed after 7d",
    )
    assert "brewctl topic keep forever" in checks["keeping-notifications"][2]


def send_old(rig: Rig, topic: str, *, age_ms: int) -> None:
    """Send three records into one partition that are so old."""
    good = good_record()
    written_ms = int(time.time() * 1000) - age_ms
    producer = Producer(rig.settings, node="test")
    try:
        record = Record(topic, good.key, good.value, good.headers, timestamp_ms=written_ms)
        assert not [each for each in producer.send([record] * 3, timeout_s=30) if isinstance(each, Exception)]
    finally:
        producer.close()


def test_doctor_says_what_a_new_downstream_gets(rig: Rig, topic: str) -> None:
    assert rig.brewctl("topic", "create", "--topic", topic).returncode == 0
    verdict, said, _ = found(rig, BREW_TOPIC=topic)["keeping"]
    assert verdict == "ok"
    assert said.startswith(f"{topic} keeps records for 7d, by whole segments for up to 1d more; ")
    assert said.endswith("a new downstream gets every event from the first on")
    send_old(rig, topic, age_ms=1000)
    remove_records(dataclasses.replace(rig.settings, topic=topic))
    said = found(rig)["keeping"][1]
    assert "its first 3 records are removed: a new downstream gets every event that the outbox still has" in said
    create_order(rig)
    with open_admin(rig.settings) as admin:
        (at,) = [partition for partition, (_, end) in admin.ends(topic).items() if end]
    rig.connection.execute(
        "UPDATE outbox SET topic = %s, published_at = now(), kafka_partition = %s, kafka_offset = 2", (topic, at)
    )
    said = found(rig)["keeping"][1]
    assert "a new downstream does not get those; `brewctl outbox republish --missing` gives it those that" in said


def test_doctor_fails_where_the_topic_is_compacted_and_warns_of_a_limit_by_size(rig: Rig, topic: str) -> None:
    assert rig.brewctl("topic", "create", "--topic", topic).returncode == 0
    configure(rig, topic, cleanup_policy="compact", retention_bytes="1000000")
    configure(rig, f"{topic}.dlq", retention_ms="1000")
    rig.env["BREW_TOPIC"] = topic
    findings = json.loads(rig.brewctl("doctor", "--json").stdout)["findings"]
    said = [(each["check"], each["verdict"], each["found"].partition(":")[0]) for each in findings]
    assert ("keeping", "fail", "cleanup.policy is compact") in said
    assert ("keeping", "warn", "retention.bytes is 1000000") in said
    assert ("letters-keeping", "warn", f"{topic}.dlq keeps dead letters for 1s alone") in said
    shown = rig.brewctl("topic", "keep", "--topic", topic)
    assert "cleanup.policy is compact: of a key's events only the last one stays" in shown.stderr
    assert rig.brewctl("topic", "keep", "7d", "--yes", "--topic", topic).returncode == 0
    assert found(rig)["keeping"][0] == "ok"


def test_a_topic_that_is_not_there(rig: Rig, topic: str) -> None:
    for words in ((), ("3d",), ("3d", "--yes"), ("forever",)):
        done = rig.brewctl("topic", "keep", *words, "--topic", topic)
        assert done.returncode == 1
        assert done.stderr == f"brewctl: topic {topic} missing in kafka: run `brewctl topic create`\n"
