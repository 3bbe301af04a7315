"""Kafka with an authorizer: the story with a user for each role, and what each must not do."""

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from kafka.admin import (
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    KafkaAdminClient,
    ResourcePatternFilter,
    ResourceType,
)

from brewctl.config import KafkaClient, Settings, environment
from brewctl.delivery.broker import (
    Consumer,
    Place,
    Producer,
    Record,
    Rule,
    UnavailableError,
    open_admin,
    open_reader,
    require_topic,
)
from brewctl.delivery.inbox import burial
from brewctl.delivery.topics import acls, topics
from brewctl.doctor import Verdict, keeping
from brewctl.errors import BrewError
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.security import KafkaSecurity, Mechanism, Protocol, Secret
from tests.conftest import Rig, run
from tests.integration.kafka_tools import good_record
from tests.integration.own_broker import OwnBroker, own_broker

_USERS = ("owner", "order", "publisher", "inventory", "notifications", "reader", "operator", "nobody")
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_PASSWORD = "same-for-all"
_IDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CLIENTS = pytest.mark.parametrize("kafka_client", list(KafkaClient))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    users = " ".join(f'user_brew_{name}="{_PASSWORD}"' for name in _USERS)
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.users.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.users.plain.sasl.jaas.config": f"{_PLAIN} required {users};",
        "group.initial.rebalance.delay.ms": "0",
        "default.replication.factor": "1",
    }
    with own_broker(
        tmp_path_factory.mktemp("kafka"), properties=properties, listeners={"USERS": "SASL_PLAINTEXT"}
    ) as broker:
        yield broker


@dataclasses.dataclass
class Stage:
    """The rig's database, and the broker for each user."""

    rig: Rig
    broker: OwnBroker
    logs: Path
    stack: contextlib.ExitStack

    @property
    def super_user(self) -> Settings:
        return dataclasses.replace(self.rig.settings, brokers=(self.broker.address,))

    def settings(self, user: str) -> Settings:
        security = KafkaSecurity(
            protocol=Protocol.SASL_PLAINTEXT,
            mechanism=Mechanism.PLAIN,
            username=f"brew_{user}",
            password=Secret("BREW_KAFKA_PASSWORD", _PASSWORD),
        )
        return dataclasses.replace(
            self.rig.settings, brokers=(self.broker.listeners["USERS"],), kafka_security=security
        )

    def run(self, user: str, *words: str, code: int = 0) -> str:
        done = run(*words, env=environment(self.settings(user)), timeout=60)
        assert done.returncode == code, (user, words, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    def start(self, user: str, node: str, *arguments: str) -> Node:
        nodes = self.stack.enter_context(Nodes(self.settings(user), logs=self.logs, on_line=lambda _line: None))
        started = nodes.start(node, *arguments)
        started.wait_ready(timeout_s=60)
        return started

    def take(self, rule: Rule, operation: str) -> None:
        """Take a right away."""
        change(self.super_user, rule, operation)

    def give(self) -> None:
        acls.apply(self.super_user, prefix="brew_")


def change(settings: Settings, rule: Rule, operation: str) -> None:
    client = KafkaAdminClient(bootstrap_servers=list(settings.brokers))
    try:
        pattern = ResourcePatternFilter(ResourceType[rule.kind.upper()], rule.name, ACLResourcePatternType.LITERAL)
        wanted = ACLFilter(f"User:{rule.user}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)
        ((_, deleted, _),) = client.delete_acls([wanted])
        assert len(deleted) == 1, (rule, operation)
    finally:
        client.close()


@pytest.fixture
def stage(rig: Rig, broker: OwnBroker, tmp_path: Path, kafka_client: KafkaClient) -> Iterator[Stage]:
    rig.settings = dataclasses.replace(rig.settings, kafka_client=kafka_client)
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, broker, tmp_path / "nodes", stack)
        stage.give()
        yield stage
        with open_admin(stage.super_user) as admin:
            for topic in (rig.settings.topic, rig.settings.dead_letter_topic):
                admin.delete_topic(topic)


@CLIENTS
def test_the_story_with_the_rights_of_each_user(stage: Stage) -> None:
    rig = stage.rig
    stage.run("owner", "topic", "create")
    address = stage.start("order", "order-1", "serve", "order", "--port", "0").address
    stage.start("publisher", "publisher-1", "publish")
    stage.start("inventory", "inventory-1", "consume", "inventory")
    stage.start("notifications", "notification-1", "consume", "notifications")
    made = stage.run("nobody", "create-order", "--customer", "c1", "--count", "3", "--addr", address)
    first, second, _ = _IDS.findall(made)
    stage.run("nobody", "cancel-order", first, "--addr", address)
    rig.wait("effects", lambda: rig.counts().notifications == rig.counts().reservations == 3)

    producer = Producer(stage.super_user, node="another-team")
    (place,) = producer.send([Record(rig.settings.topic, b"k", b"no order", [])], timeout_s=20)
    assert isinstance(place, Place)
    producer.close()
    rig.wait("dead letters", lambda: len(stage.run("reader", "dlq", "list", "--json").splitlines()) == 2)
    said = stage.run("reader", "dlq", "redrive", "--all", code=1)
    hint = "`brewctl topic grants` prints what each user needs"
    assert said == f"brewctl: kafka user brew_reader may not WRITE topic {rig.settings.topic}: {hint}\n"
    assert stage.run("operator", "dlq", "redrive", "--all").startswith("redriven=2 ")
    rig.wait("dead letters", lambda: len(stage.run("reader", "dlq", "list", "--json").splitlines()) >= 2)
    stage.run("operator", "dlq", "drop", "--all", "--yes")
    stage.run("operator", "outbox", "republish", "1", "--yes")
    rig.wait("no row that waits", lambda: rig.counts().outbox_unpublished == 0)
    assert "finished" in stage.run("reader", "trace", second)
    assert "inventory" in stage.run("reader", "groups")
    rig.wait(
        "the verdict", lambda: run("verify", "--late", "0", env=environment(stage.settings("reader"))).returncode == 0
    )
    stage.run("operator", "outbox", "republish", "--missing", "--dry-run")
    said = run("doctor", "--addr", address, env=environment(stage.settings("reader"))).stdout
    assert "may not" not in said, said
    for log in sorted(stage.logs.iterdir()):
        assert "right" not in log.read_text(), log.name


def _produce(settings: Settings, topic: str = "") -> None:
    producer = Producer(settings, node="test")
    good = good_record()
    try:
        (outcome,) = producer.send([Record(topic or settings.topic, good.key, good.value, good.headers)], timeout_s=5)
    finally:
        producer.abandon()
    if not isinstance(outcome, Place):
        raise outcome


def _consume(settings: Settings, group: str) -> None:
    stop = threading.Event()
    assigned: list[int] = []
    member = Consumer(settings, stop, group=group, node="n", on_assigned=assigned.extend, on_revoked=lambda: None)
    deadline = time.monotonic() + 30
    records: list[Record] = []
    try:
        while not records and time.monotonic() < deadline:
            records = member.poll(timeout_s=0.2)
        if refused := member.commit(records):
            raise UnavailableError(refused)
    finally:
        stop.set()
        member.close()


def _bury(settings: Settings, group: str) -> None:
    good = good_record()
    record = Record(settings.topic, good.key, good.value, good.headers, partition=0, offset=0)
    grave = burial.Burial(settings, group, node="n")
    try:
        grave.bury([(record, "unreadable")])
    finally:
        grave.close()


def _read(settings: Settings, topic: str) -> None:
    with open_reader(settings) as reader:
        assert sum(map(len, reader.read(topic, reader.bounds(topic))))


MUST_NOT: dict[str, list[Callable[[Settings], object]]] = {
    "order": [
        lambda settings: _read(settings, settings.topic),
        lambda settings: _read(settings, settings.dead_letter_topic),
        lambda settings: _produce(settings, settings.dead_letter_topic),
        lambda settings: _consume(settings, "inventory"),
    ],
    "publisher": [
        lambda settings: _read(settings, settings.topic),
        lambda settings: _produce(settings, settings.dead_letter_topic),
    ],
    "inventory": [
        _produce,
        lambda settings: _read(settings, settings.dead_letter_topic),
        lambda settings: _consume(settings, "notifications"),
        lambda settings: _consume(settings, "mine"),
    ],
    "reader": [
        _produce,
        lambda settings: _produce(settings, settings.dead_letter_topic),
        lambda settings: _consume(settings, "inventory"),
        lambda settings: topics.create(settings, recreate=True),
    ],
    "operator": [
        lambda settings: _produce(settings, settings.dead_letter_topic),
        lambda settings: topics.create(settings, recreate=True),
    ],
    "owner": [_produce, lambda settings: _consume(settings, "inventory")],
    "nobody": [
        _produce,
        lambda settings: _read(settings, settings.topic),
        lambda settings: _consume(settings, "inventory"),
        topics.create,
        lambda settings: acls.apply(settings, prefix="brew_"),
        require_topic,
    ],
}


@CLIENTS
def test_what_each_user_must_not_do_is_refused(stage: Stage) -> None:
    topics.create(stage.super_user)
    _produce(stage.super_user)
    _bury(stage.super_user, "inventory")
    allowed = []
    for user, tries in MUST_NOT.items():
        for number, attempt in enumerate(tries):
            try:
                attempt(stage.settings(user))
            except (BrewError, UnavailableError) as error:
                if not re.search(r"may not|no right", str(error)):
                    allowed.append((user, number, str(error)))
            else:
                allowed.append((user, number, "done"))
    assert allowed == []


@CLIENTS
def test_a_command_without_a_right_says_which_in_one_line(stage: Stage) -> None:
    topic = stage.rig.settings.topic
    hint = "`brewctl topic grants` prints what each user needs"
    topics.create(stage.super_user)
    said = stage.run("nobody", "consume", "inventory", code=1)
    assert said == f"brewctl: kafka user brew_nobody may not DESCRIBE topic {topic} and {topic}.dlq: {hint}\n"
    said = stage.run("notifications", "consume", "inventory", code=1)
    assert said.splitlines()[-1] == f"brewctl: kafka user brew_notifications may not READ group inventory: {hint}"
    said = stage.run("nobody", "topic", "grants", "--apply", code=1)
    assert said == f"brewctl: kafka user brew_nobody may not do this with the cluster: {hint}\n"
    _bury(stage.super_user, "inventory")
    said = stage.run("order", "dlq", "list", code=1)
    assert said.count("\n") == 1
    assert said.startswith("brewctl: kafka user brew_order may not "), said


def _is_forbidden(node: Node, before: int) -> bool:
    return node.log.read_text().count("kafka_forbids") > before


def _has_reservations(rig: Rig, wanted: int) -> bool:
    return rig.counts().reservations == wanted


@CLIENTS
def test_who_loses_a_right_while_it_runs_waits_for_it_and_loses_nothing(stage: Stage) -> None:
    rig, topic = stage.rig, stage.rig.settings.topic
    topics.create(stage.super_user)
    address = stage.start("order", "order-1", "serve", "order", "--port", "0", "--no-publisher").address
    publisher = stage.start("publisher", "publisher-1", "publish")
    inventory = stage.start("inventory", "inventory-1", "consume", "inventory")

    def create() -> None:
        stage.run("nobody", "create-order", "--customer", "c1", "--count", "5", "--addr", address)

    create()
    rig.wait("reservations", lambda: rig.counts().reservations == 5)

    stage.take(Rule("brew_publisher", ("WRITE",), "topic", topic), "WRITE")
    create()
    rig.wait("a line about it", lambda: "no right to" in publisher.log.read_text())
    assert (rig.counts().outbox_unpublished, rig.counts().outbox_failed) == (5, 0)
    stage.give()
    rig.wait("reservations", lambda: rig.counts().reservations == 10)
    assert rig.counts().outbox_failed == 0

    for kind, name in (("topic", topic), ("group", "inventory")):
        before = inventory.log.read_text().count("kafka_forbids")
        stage.take(Rule("brew_inventory", ("READ",), kind, name), "READ")
        rig.wait("a line about it", partial(_is_forbidden, inventory, before))
        create()
        stage.give()
        wanted = rig.counts().orders
        rig.wait("reservations", partial(_has_reservations, rig, wanted))
        assert f"may not READ {kind} {name}" in inventory.log.read_text()
    assert inventory.alive
    assert publisher.alive


def test_rights_are_given_again_without_a_word_and_not_without_an_authorizer(stage: Stage, rig: Rig) -> None:
    stage.give()
    done = run("topic", "grants", "--apply", env=environment(stage.super_user))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"rights to topic {rig.settings.topic} are given to 7 users, brew_…\n"
    done = rig.brewctl("topic", "grants", "--apply")
    assert done.returncode == 1
    assert done.stderr.startswith("brewctl: kafka checks no rights: its brokers have no authorizer: set ")


def test_who_may_not_know_how_long_a_topic_keeps_its_records_is_told_so(stage: Stage) -> None:
    topics.create(stage.super_user)
    shown = stage.run("operator", "topic", "keep", code=1)
    assert shown.startswith("brewctl: kafka user brew_operator may not do this with topic ")
    assert len(shown.splitlines()) == 1
    (said,) = keeping.check(stage.settings("operator"))
    assert (said.check, said.verdict) == ("keeping", Verdict.WARN)
    assert "is not known: kafka user brew_operator may not" in said.found
    (known,) = keeping.check(stage.settings("reader"))
    assert known.verdict is Verdict.OK


def _reset(settings: Settings, group: str) -> None:
    _checked(settings, "groups", "reset", group, "--to", "earliest", "--yes")


def _checked(settings: Settings, *words: str) -> None:
    done = run(*words, env=environment(settings), timeout=60)
    if done.returncode:
        raise BrewError(done.stdout + done.stderr)


def _needs(settings: Settings, user: str) -> list[Callable[[Settings], object]]:
    """What the user of a role does with Kafka, so that each of its rights is used."""
    match user:
        case "owner":
            return [
                lambda chosen: topics.create(chosen, recreate=True),
                lambda chosen: _checked(chosen, "topic", "keep", "3d", "--yes"),
            ]
        case "order":
            return [require_topic, _produce]
        case "publisher":
            return [_produce]
        case "reader":
            letters = settings.dead_letter_topic
            return [
                lambda chosen: _read(chosen, settings.topic),
                lambda chosen: _read(chosen, letters),
                lambda chosen: _checked(chosen, "groups"),
                _described,
            ]
        case "operator":
            letters = settings.dead_letter_topic
            return [
                *(partial(_reset, group=group) for group in ("inventory", "notifications")),
                _produce,
                lambda chosen: _read(chosen, letters),
            ]
        case group:
            return [require_topic, partial(_consume, group=group), partial(_bury, group=group)]


def _described(settings: Settings) -> None:
    with open_admin(settings) as admin:
        for topic in (settings.topic, settings.dead_letter_topic):
            admin.configuration(topic)


@pytest.mark.parametrize("user", [name for name in _USERS if name != "nobody"])
def test_a_user_needs_every_right_that_it_has(stage: Stage, user: str) -> None:
    def works() -> str:
        try:
            for attempt in _needs(stage.rig.settings, user):
                attempt(stage.settings(user))
        except (BrewError, UnavailableError) as error:
            return str(error)
        return ""

    def prepare() -> None:
        topics.create(stage.super_user)
        _produce(stage.super_user)
        _bury(stage.super_user, "inventory")
        for group in ("inventory", "notifications"):
            _consume(stage.super_user, group)

    prepare()
    stage.rig.wait("all rights", lambda: works() == "", timeout_s=30)
    needless = []
    for rule in acls.rules(stage.super_user, prefix="brew_"):
        for operation in rule.operations if rule.user == f"brew_{user}" else ():
            stage.take(rule, operation)
            if user == "owner":
                prepare()
            if not works():
                needless.append((operation, rule.kind, rule.name))
            stage.give()
    assert needless == []
