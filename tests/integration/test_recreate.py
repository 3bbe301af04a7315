"""`topic create --recreate`: what it deletes, what it leaves alone, and when it deletes nothing at all."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer

from brewctl.config import Settings
from brewctl.delivery.broker import Admin, open_admin
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from tests.conftest import Rig
from tests.integration.kafka_tools import good_record, raw_client, send_raw
from tests.integration.reading import read_topic

GROUPS = ("inventory", "notifications")


@pytest.fixture
def admin(rig: Rig) -> Iterator[Admin]:
    with open_admin(rig.settings) as admin:
        yield admin


@pytest.fixture
def other(rig: Rig, admin: Admin) -> Iterator[str]:
    """Another deployment's topic."""
    name = f"{rig.settings.topic}-of-another"
    admin.create_topic(name, replicas=1)
    wait_until("a leader", lambda: admin.is_led(name), timeout_s=60)
    yield name
    for group in GROUPS:
        admin.forget(group, [name])
    admin.delete_topic(name)


@contextlib.contextmanager
def member(settings: Settings, group: str, topic: str) -> Iterator[Any]:
    """A member of a group that reads a topic."""
    reader = KafkaConsumer(
        topic,
        **connection(settings, name="test"),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    with contextlib.closing(reader):
        wait_until(
            "an assignment", lambda: reader.poll(timeout_ms=200) is not None and reader.assignment(), timeout_s=60
        )
        yield reader


def fill(rig: Rig, admin: Admin, other: str) -> None:
    """A record in the topic, and offsets of every group in all topics."""
    with raw_client(rig.settings) as client:
        good = good_record()
        send_raw(client, (rig.settings.topic, 1), good.key, good.value, good.headers)
    for group in GROUPS:
        for topic in (rig.settings.topic, rig.settings.dead_letter_topic, other):
            admin.commit(group, topic, {0: 3, 1: 4})


def offsets(admin: Admin, *names: str) -> list[dict[int, int]]:
    return [admin.committed(group, name) for group in GROUPS for name in names]


def test_offsets_of_other_topics_stay(rig: Rig, admin: Admin, other: str) -> None:
    fill(rig, admin, other)
    with member(rig.settings, "inventory", other):  # of the same group, and of another topic: no reason to refuse
        assert set(topics.create(rig.settings, recreate=True)) == {rig.settings.topic, rig.settings.dead_letter_topic}
    assert read_topic(rig.settings) == []
    assert offsets(admin, rig.settings.topic, rig.settings.dead_letter_topic) == [{}] * 4
    assert offsets(admin, other) == [{0: 3, 1: 4}] * 2
    topics.create(rig.settings, recreate=True)  # nothing to forget


@pytest.mark.parametrize("group", ["notifications", "a-stranger"])
def test_a_refusal_leaves_everything_as_it_was(rig: Rig, admin: Admin, other: str, group: str) -> None:
    fill(rig, admin, other)
    with member(rig.settings, group, rig.settings.topic):
        done = rig.brewctl("topic", "create", "--recreate", "--yes")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"brewctl: consumer group {group} has live members: stop the members")
    assert len(read_topic(rig.settings)) == 1
    assert offsets(admin, rig.settings.topic, rig.settings.dead_letter_topic, other) == [{0: 3, 1: 4}] * 6


def test_a_member_that_comes_after_the_look_keeps_its_offsets(rig: Rig, admin: Admin, other: str) -> None:
    fill(rig, admin, other)
    with (
        member(rig.settings, "inventory", rig.settings.topic),
        pytest.raises(BrewError, match="consumer group inventory has live members"),
    ):
        admin.forget("inventory", [rig.settings.topic])
    assert offsets(admin, rig.settings.topic) == [{0: 3, 1: 4}] * 2


def test_groups_with_a_prefix_are_forgotten_and_others_are_not(rig: Rig, admin: Admin) -> None:
    topic = rig.settings.topic
    for group in (*GROUPS, "team-a.inventory", "team-a.notifications"):
        admin.commit(group, rig.settings.dead_letter_topic, {0: 1})
        admin.commit(group, topic, {0: 1})
    rig.env["BREW_GROUP_PREFIX"] = "team-a."
    done = rig.brewctl("groups", "reset", "inventory", "--to", "latest", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("team-a.inventory: ")
    assert admin.committed("inventory", topic) == {0: 1}, "a group without the prefix is another deployment's"
    topics.forget_offsets(rig.settings)
    assert offsets(admin, topic, rig.settings.dead_letter_topic) == [{}] * 4
    assert admin.committed("team-a.notifications", topic) == {0: 1}
