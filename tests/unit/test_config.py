"""Where settings come from, which of them can't be used, and what is never shown."""

import pwd
from pathlib import Path

import pytest

from brewctl import config
from brewctl.config import (
    DEFAULT_BROKERS,
    DEFAULT_DATABASE_URL,
    DEFAULT_DOWNSTREAMS,
    DEFAULT_ORDER_ADDRS,
    TOPIC,
    KafkaClient,
    Settings,
)
from brewctl.errors import UsageError
from brewctl.limits import Limits

# setting, two texts for it, what each becomes, the default
SETTINGS = [
    ("database_url", ("postgresql://a/x", "postgresql://b/x"), ("postgresql://a/x", "postgresql://b/x")),
    ("brokers", ("a:1,b:2", "c:3"), (("a:1", "b:2"), ("c:3",))),
    ("topic", ("topic-a", "topic-b"), ("topic-a", "topic-b")),
    ("order_addrs", ("a:1", "b:2, c:3"), (("a:1",), ("b:2", "c:3"))),
    (
        "downstreams",
        ("inventory, loyalty:points,", "my.own_2.module:NAME,loyalty:points,my.own_2.module:NAME"),
        ((DEFAULT_DOWNSTREAMS[0], "loyalty:points"), ("my.own_2.module:NAME", "loyalty:points")),
    ),
    ("group_prefix", ("team-a.", "x" * 100), ("team-a.", "x" * 100)),
    ("kafka_client", ("librdkafka", "kafka-python-ng"), (KafkaClient.LIBRDKAFKA, KafkaClient.KAFKA_PYTHON_NG)),
]
DEFAULTS = {
    "database_url": DEFAULT_DATABASE_URL,
    "brokers": DEFAULT_BROKERS,
    "topic": TOPIC,
    "order_addrs": DEFAULT_ORDER_ADDRS,
    "downstreams": DEFAULT_DOWNSTREAMS,
    "group_prefix": "",
    "kafka_client": KafkaClient.KAFKA_PYTHON_NG,
}
each_setting = pytest.mark.parametrize(("name", "texts", "values"), SETTINGS)
each_name = pytest.mark.parametrize("name", [name for name, _, _ in SETTINGS])

Pair = tuple[str, str]


def value(settings: Settings, name: str) -> object:
    return getattr(settings, name)


@each_setting
def test_a_flag_wins_over_the_environment(name: str, texts: Pair, values: tuple[object, object]) -> None:
    settings = config.resolve({name: texts[0]}, {config.ENVIRONMENT[name]: texts[1]}, {name: texts[1]})
    assert value(settings, name) == values[0]


@each_setting
def test_the_environment_wins_over_the_sandbox(name: str, texts: Pair, values: tuple[object, object]) -> None:
    settings = config.resolve({name: None}, {config.ENVIRONMENT[name]: texts[0]}, {name: texts[1]})
    assert value(settings, name) == values[0]


@each_setting
def test_the_sandbox_wins_over_the_default(name: str, texts: Pair, values: tuple[object, object]) -> None:
    assert value(config.resolve({}, {}, {name: texts[0]}), name) == values[0]


@each_name
def test_the_default(name: str) -> None:
    assert value(config.resolve({}, {}, {}), name) == DEFAULTS[name]


@each_setting
def test_an_empty_flag_is_not_given(name: str, texts: Pair, values: tuple[object, object]) -> None:
    settings = config.resolve({name: ""}, {config.ENVIRONMENT[name]: texts[0]}, {})
    assert value(settings, name) == values[0]


@each_setting
def test_an_empty_variable_is_not_given(name: str, texts: Pair, values: tuple[object, object]) -> None:
    settings = config.resolve({}, {config.ENVIRONMENT[name]: ""}, {name: texts[0]})
    assert value(settings, name) == values[0]
    assert settings.configured == frozenset()


@each_setting
def test_configured_names_what_a_flag_or_the_environment_gave(
    name: str, texts: Pair, values: tuple[object, object]
) -> None:
    assert values[0] != values[1]
    assert config.resolve({name: texts[0]}, {}, {}).configured == {name}
    assert config.resolve({}, {config.ENVIRONMENT[name]: texts[0]}, {}).configured == {name}
    assert config.resolve({}, {}, {name: texts[0]}).configured == frozenset()


def test_one_setting_is_resolved_without_the_others() -> None:
    """A flag for Kafka leaves the sandbox's PostgreSQL where it is."""
    sandbox = {"database_url": "postgresql://sandbox/x", "brokers": "sandbox:1"}
    settings = config.resolve({"brokers": "mine:1"}, {}, sandbox)
    assert settings.database_url == "postgresql://sandbox/x"
    assert settings.brokers == ("mine:1",)
    assert settings.configured == {"brokers"}


def test_other_variables_are_none_of_ours() -> None:
    assert config.resolve({}, {"DATABASE_URL": "postgresql://other/x", "BREW_KAFKA": "other:1"}, {}) == Settings()


@pytest.mark.parametrize("text", [" a:1 , b:2 ", "a:1,,b:2", ",a:1,b:2,"])
def test_spaces_and_empty_parts_are_no_addresses(text: str) -> None:
    assert config.resolve({"brokers": text}, {}, {}).brokers == ("a:1", "b:2")


@pytest.mark.parametrize("address", ["localhost:9092", "[::1]:9092", "kafka-1.example.org:1", "10.0.0.1:65535"])
def test_addresses(address: str) -> None:
    assert config.resolve({"brokers": address}, {}, {}).brokers == (address,)


@pytest.mark.parametrize("address", ["foo", "foo:", ":9092", "foo:0", "foo:65536", "foo:-1", "foo:9o92", "foo:1.5"])
@pytest.mark.parametrize("name", ["brokers", "order_addrs"])
def test_malformed_addresses(name: str, address: str) -> None:
    variable = config.ENVIRONMENT[name]
    with pytest.raises(UsageError, match=f"^{variable}: '{address}' is not HOST:PORT") as refused:
        config.resolve({}, {variable: f"good:1,{address}"}, {})
    assert refused.value.hint


@pytest.mark.parametrize("topic", ["t", "A.b_c-9", "t" * 245, "..."])
def test_topics(topic: str) -> None:
    settings = config.resolve({"topic": topic}, {}, {})
    assert settings.topic == topic
    assert settings.dead_letter_topic == f"{topic}.dlq"
    assert len(settings.dead_letter_topic) <= 249  # Kafka's limit


@pytest.mark.parametrize("topic", [".", "..", "a b", "a/b", "töpic", "t\n", "t" * 246, "t" * 10_000])
def test_malformed_topics(topic: str) -> None:
    with pytest.raises(UsageError, match="is no topic name") as refused:
        config.resolve({"topic": topic}, {}, {})
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shown", [repr, str, "{}".format])
def test_the_password_is_not_shown(shown: "type[str]") -> None:
    settings = config.resolve({"database_url": "postgresql://u:hunter2@h/d"}, {}, {})
    assert "hunter2" not in shown(settings)
    assert settings.database_url == "postgresql://u:hunter2@h/d"


def test_limits_are_passed_on() -> None:
    limits = Limits(session_s=42.0)
    assert config.resolve({}, {}, {}, limits).limits is limits
    assert config.resolve({}, {}, {}).limits == Limits()


@pytest.mark.parametrize(("session_s", "heartbeat_s"), [(3.0, 1.0), (15.0, 5.0)])
def test_a_session_of_three_heartbeats(session_s: float, heartbeat_s: float) -> None:
    assert Limits(session_s=session_s, heartbeat_s=heartbeat_s).session_s == session_s


@pytest.mark.parametrize(("session_s", "heartbeat_s"), [(2.9, 1.0), (15.0, 5.1), (1.0, 1.0)])
def test_a_session_that_is_too_short_for_its_heartbeats(session_s: float, heartbeat_s: float) -> None:
    with pytest.raises(UsageError, match=f"^session timeout {session_s:g} s must be at least 3 heartbeats of"):
        Limits(session_s=session_s, heartbeat_s=heartbeat_s)


@pytest.mark.parametrize("publish_s", [15.0, 20.0])
def test_an_idle_transaction_outlives_a_publish(publish_s: float) -> None:
    """Else PostgreSQL would end a publisher that waits for Kafka as it may."""
    with pytest.raises(UsageError, match="database_idle_transaction_s must be longer than publish_s"):
        Limits(database_idle_transaction_s=15, publish_s=publish_s)


def test_a_member_may_be_silent_for_one_try_of_a_batch() -> None:
    """Else a consumer that waits for a silent database would lose its partitions between two polls."""
    with pytest.raises(UsageError, match="poll_interval_s must be longer than one try"):
        Limits(poll_interval_s=47.0)
    assert Limits(poll_interval_s=47.1).poll_interval_s == 47.1


def test_home_is_named_by_brew_home(tmp_path: Path) -> None:
    assert config.home({"BREW_HOME": str(tmp_path)}) == tmp_path


def test_home_is_absolute_and_knows_the_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert config.home({"BREW_HOME": "here"}) == tmp_path / "here"
    assert config.home({"BREW_HOME": "~/brew"}) == tmp_path / "user" / "brew"


@pytest.mark.parametrize("environ", [{}, {"BREW_HOME": ""}])
def test_home_by_default_is_in_the_users_state(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    home = config.home(environ)
    assert home.name == "brewctl"
    assert home.is_relative_to(tmp_path)


def test_without_a_home_folder_the_variable_that_names_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`env -i` with a user id that /etc/passwd does not know."""

    def unknown(_uid: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "BREW_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="has no home folder") as no_state:
        config.home()
    assert no_state.value.hint == "set BREW_HOME to a folder of yours"
    with pytest.raises(UsageError, match="has no home folder") as no_cache:
        config.cache()
    assert no_cache.value.hint == "set XDG_CACHE_HOME to a folder of yours"


def test_the_cache_is_where_xdg_cache_home_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for named, folder in {"~/c": tmp_path / "user" / "c", "rel": tmp_path / "rel", "/abs": Path("/abs")}.items():
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert config.cache() == folder / "brewctl"


def test_a_relative_home_below_a_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match=r"^BREW_HOME: 'here' is below a working directory that is gone"):
        config.home({"BREW_HOME": "here"})


@pytest.mark.parametrize(
    "text", ["loyalty", "loyalty:", ":points", "a b:c", "1a:b", "a:b:c", "a..b:c", "a:b;inventory"]
)
def test_what_is_no_downstream_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"BREW_DOWNSTREAMS: .* is not MODULE:NAME"):
        config.resolve({}, {"BREW_DOWNSTREAMS": f"inventory,{text}"}, {})


@pytest.mark.parametrize("text", ["team a", "team/", "x" * 101, "é"])
def test_what_begins_no_group_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"BREW_GROUP_PREFIX: .* can't begin a consumer group's name"):
        config.resolve({}, {"BREW_GROUP_PREFIX": text}, {})


def test_what_a_process_is_told_is_what_it_resolves() -> None:
    flags = {"downstreams": "notifications,loyalty:points", "group_prefix": "team-a.", "kafka_client": "librdkafka"}
    told = config.resolve(flags, {}, {})
    heard = config.resolve({}, config.environment(told), {})
    assert (heard.downstreams, heard.group_prefix) == (told.downstreams, told.group_prefix)
    assert heard.kafka_client is KafkaClient.LIBRDKAFKA
    assert [config.short_name(name) for name in heard.downstreams] == ["notifications", "loyalty:points"]


def test_a_kafka_client_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"BREW_KAFKA_CLIENT: 'kafka' is no Kafka client: use .*-ng or librdkafka"):
        config.resolve({}, {"BREW_KAFKA_CLIENT": "kafka"}, {})


def test_a_kafka_client_that_is_not_installed_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"librdkafka is not installed: pip install 'brewctl\[librdkafka\]'"):
        config.resolve({}, {"BREW_KAFKA_CLIENT": "librdkafka"}, {})
    assert config.resolve({}, {}, {}).kafka_client is KafkaClient.KAFKA_PYTHON_NG


_INVENTORY, _LOYALTY = "BREW_INVENTORY_DATABASE_URL", "BREW_LOYALTY_DATABASE_URL"
_SANDBOX = {"database_url": "postgresql://sandbox/brew", _INVENTORY: "postgresql://sandbox/inventory"}


def _own(environ: dict[str, str], sandbox: dict[str, str], **flags: str) -> dict[str, str]:
    return {each.named_by: each.file or each.text for each in config.resolve(flags, environ, sandbox).own_databases}


def test_databases_of_downstreams_own_come_from_the_environment_then_the_sandbox() -> None:
    assert _own({}, {}) == {}
    assert _own({_LOYALTY: "postgresql://there/points"}, {}) == {_LOYALTY: "postgresql://there/points"}
    assert _own({}, _SANDBOX) == {_INVENTORY: "postgresql://sandbox/inventory"}
    both = {_INVENTORY: "postgresql://sandbox/inventory", _LOYALTY: "postgresql://there/points"}
    assert _own({_LOYALTY: "postgresql://there/points"}, _SANDBOX) == both
    assert _own({_INVENTORY: "postgresql://there/brew"}, _SANDBOX) == {_INVENTORY: "postgresql://there/brew"}
    assert _own({_INVENTORY: " "}, _SANDBOX) == {_INVENTORY: "postgresql://sandbox/inventory"}
    assert _own({f"{_INVENTORY}_FILE": "/run/url"}, _SANDBOX) == {f"{_INVENTORY}_FILE": "/run/url"}


@pytest.mark.parametrize(
    ("environ", "flags"),
    [({"BREW_DATABASE_URL": "postgresql://there/brew"}, {}), ({}, {"database_url": "postgresql://there/brew"})],
)
def test_those_of_the_sandbox_are_beside_its_own_database_alone(environ: dict[str, str], flags: dict[str, str]) -> None:
    assert _own(environ, _SANDBOX, **flags) == {}


def test_a_database_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=f"{_INVENTORY} and {_INVENTORY}_FILE are both set"):
        config.resolve({}, {_INVENTORY: "postgresql://a/b", f"{_INVENTORY}_FILE": "/run/url"}, {})


def test_a_process_is_told_of_the_databases_of_downstreams_own() -> None:
    named = {_INVENTORY: "postgresql://u:hunter2@there/inventory", f"{_LOYALTY}_FILE": "/run/url"}
    settings = config.resolve({}, {"BREW_DATABASE_URL": "postgresql://there/brew", **named}, {})
    assert "hunter2" not in repr(settings)
    assert {_INVENTORY, _LOYALTY} <= settings.configured
    told = config.environment(settings)
    assert named.items() <= told.items()
    assert config.resolve({}, told, _SANDBOX).own_databases == settings.own_databases
