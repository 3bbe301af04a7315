"""A secret is in no argument, no log and no line that anybody sees, whichever way it came and whatever fails."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.client import OrderClient
from brewctl.config import KafkaClient, Settings, resolve
from brewctl.lab.play.nodes import Nodes
from tests.conftest import Rig, open_rig, run
from tests.integration.secured_broker import Secured, locked, secured_broker

# One for each setting that holds a secret; none is in any other text.
DATABASE, KAFKA, KEY, TOKEN = "plantedQdatabase", "plantedQkafka", "plantedQkey", "plantedQtoken"
SECRETS = (DATABASE, KAFKA, KEY, TOKEN)
ROLE = "planted"
COMMANDS = (
    ("counts",),
    ("counts", "--json"),
    ("verify",),
    ("doctor", "--json"),
    ("status",),
    ("topic", "create"),
)
ELSEWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        broker.change_password(ROLE, KAFKA)
        (broker.folder / "locked.key").write_bytes(locked(broker.folder / "client.key", KEY))
        yield broker


@pytest.fixture
def rig(secured: Secured, servers: dict[str, str], tmp_path: Path, kafka_client: KafkaClient) -> Iterator[Rig]:
    settings = secured.settings("LOCKED")
    places = servers | {"BREW_KAFKA_BROKERS": ",".join(settings.brokers)}
    with open_rig(
        places, tmp_path / "logs", kafka_client=kafka_client, kafka_security=settings.kafka_security
    ) as found:
        found.connection.execute(f"DROP ROLE IF EXISTS {ROLE}".encode())
        found.connection.execute(f"CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD '{DATABASE}'".encode())
        yield found


@pytest.fixture(params=["by variable", "by file"])
def env(request: pytest.FixtureRequest, rig: Rig, secured: Secured, tmp_path: Path) -> dict[str, str]:
    """Variables with all secrets, or that name the files with them."""
    url = make_conninfo(rig.settings.database_url, user=ROLE, password=DATABASE)
    secrets = {
        "BREW_DATABASE_URL": url,
        "BREW_KAFKA_PASSWORD": KAFKA,
        "BREW_KAFKA_KEY_PASSWORD": KEY,
        "BREW_ORDER_TOKEN": TOKEN,
    }
    if request.param == "by file":
        for name, secret in list(secrets.items()):
            file = tmp_path / name
            file.write_text(secret + "\n")
            secrets |= {name: "", f"{name}_FILE": str(file)}
    return {
        "BREW_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "BREW_KAFKA_USERNAME": ROLE,
        "BREW_KAFKA_CA_FILE": str(secured.folder / "ca.pem"),
        "BREW_KAFKA_CERT_FILE": str(secured.folder / "client.pem"),
        "BREW_KAFKA_KEY_FILE": str(secured.folder / "locked.key"),
        "BREW_KAFKA_BROKERS": ",".join(rig.settings.brokers),
        "BREW_KAFKA_CLIENT": rig.settings.kafka_client.value,
        "BREW_TOPIC": rig.settings.topic,
        "BREW_HOME": str(tmp_path / "home"),
        **secrets,
    }


def planted(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def arguments() -> str:
    """Return the arguments of every process of this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            found += process.cmdline()
        except psutil.Error:
            continue
    return "\n".join(found)


def said(*words: str, env: Mapping[str, str]) -> str:
    ended = run(*words, env=dict(env))
    return ended.stdout + ended.stderr


def test_roles_and_commands_that_work(rig: Rig, env: dict[str, str], tmp_path: Path) -> None:
    settings = resolve({}, env, {})
    logs = tmp_path / "planted"
    logs.mkdir()
    with Nodes(settings, logs=logs, on_line=lambda _line: None) as nodes:
        own = dataclasses.replace(rig, settings=settings, nodes=nodes)
        inventory = own.start("inventory-1", "-v", "consume", "inventory")
        order = own.start("order-1", "-v", "serve", "order", "--port", "0", "--workers", "2")
        with OrderClient([order.address]) as client:
            client.create("c1", amount_cents=450, currency="EUR")
        rig.wait("the order is reserved", lambda: rig.counts().reservations == 1)
        assert planted(arguments()) == []
        texts = {words: said(*words, env=env) for words in COMMANDS}
        texts |= {("-v", *words): said("-v", *words, env=env) for words in (("groups",),)}
    for node in (inventory, order):
        texts[node.name,] = node.log.read_text() + "\n".join(node.lines)
    assert {words: planted(text) for words, text in texts.items() if planted(text)} == {}


def test_roles_and_commands_that_fail(env: dict[str, str], tmp_path: Path) -> None:
    broken: dict[str, dict[str, str]] = {
        "kafka is away": {"BREW_KAFKA_BROKERS": ELSEWHERE},
        "the user is unknown to kafka": {"BREW_KAFKA_USERNAME": "nobody"},
        "kafka speaks otherwise": {"BREW_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
        "a CA file is missing": {"BREW_KAFKA_CA_FILE": str(tmp_path / "none")},
        "a key does not open": {"BREW_KAFKA_KEY_FILE": env["BREW_KAFKA_CERT_FILE"]},
        "a setting is set twice": {
            name: value
            for secret in ("BREW_KAFKA_PASSWORD", "BREW_KAFKA_KEY_PASSWORD", "BREW_ORDER_TOKEN")
            for name, value in ((secret, KAFKA), (f"{secret}_FILE", str(tmp_path / "none")))
        },
        "the URL is none": {"BREW_DATABASE_URL": f"postgresql://u:{DATABASE}@[/", "BREW_DATABASE_URL_FILE": ""},
        "the database is not there": {
            "BREW_DATABASE_URL": f"postgresql://u:{DATABASE}@{ELSEWHERE}/none?sslmode=nonsense",
            "BREW_DATABASE_URL_FILE": "",
        },
        "the role is unknown": {
            "BREW_DATABASE_URL": make_conninfo(resolve({}, env, {}).database_url, user="nobody", password=DATABASE),
            "BREW_DATABASE_URL_FILE": "",
        },
    }
    for case, changes in broken.items():
        text = said("-v", "consume", "inventory", env=env | changes)
        assert "brewctl: " in text, case
        assert planted(text) == [], (case, text)
    refused = env | broken["the user is unknown to kafka"]
    assert "Traceback" in said("-v", "groups", env=refused)
    assert planted(said("-v", "groups", env=refused) + said("doctor", env=refused)) == []


def test_what_settings_show_of_themselves(env: dict[str, str]) -> None:
    settings: Settings = resolve({}, env, {})
    assert planted(repr(settings)) == []
    assert planted(str(dataclasses.fields(settings))) == []


def test_a_crash_shows_no_secret(env: dict[str, str], tmp_path: Path) -> None:
    """A traceback of a user's own code, in a process that has the secrets."""
    (tmp_path / "crashing.py").write_text("import os\nsecrets = dict(os.environ)\nraise SystemError('crash')\n")
    text = said("-v", "consume", "crashing:DOWNSTREAM", "--app-dir", str(tmp_path), env=env)
    assert "Traceback" in text
    assert planted(text) == []


def test_a_process_has_what_came_by_variable_in_its_environment_alone(env: dict[str, str]) -> None:
    """Said in the documentation: who may read it is the process's own user. What is in files is not there."""
    child = {name: value for name, value in env.items() if planted(value)}
    named = {name for name in env if name.endswith("_FILE") and env.get(name.removesuffix("_FILE")) == ""}
    assert not (child.keys() & {name.removesuffix("_FILE") for name in named})
    assert os.environ.keys().isdisjoint(child)
