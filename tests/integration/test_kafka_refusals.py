"""What does not fit between a broker and its clients: one line, which names the setting, and the right exit code."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brewctl.config import KafkaClient, Settings, environment
from brewctl.delivery.broker import Producer, UnavailableError, open_admin, reason
from brewctl.errors import BrewError, ExitCode, UnreachableError
from brewctl.security import KafkaSecurity, Mechanism, Protocol, Secret
from tests.conftest import run
from tests.integration.secured_broker import PASSWORD, Secured, locked, secured_broker

WRONG = Secret("BREW_KAFKA_PASSWORD", "another-word")
CLIENTS = pytest.mark.parametrize("client", list(KafkaClient))
# Of a listener ("" is the one without anything): what is set otherwise, what is said, and what is to be done.
REFUSALS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a wrong password": ("LOCKED", {"password": WRONG}, "refused user brew (authentication failed", "BREW_KAFKA_PASS"),
    "a wrong password, in the clear": (
        "LOCKED",
        {"password": WRONG, "mechanism": Mechanism.PLAIN},
        "refused user brew (authentication failed",
        "BREW_KAFKA_PASSWORD",
    ),
    "an unknown user": ("LOCKED", {"username": "nobody"}, "refused user nobody", "BREW_KAFKA_USERNAME"),
    "a foreign authority": ("TLS", {"ca": "stranger-ca.pem"}, "a certificate that is not trusted", "stranger-ca.pem"),
    "no authority": ("TLS", {"ca": ""}, "a certificate that is not trusted", "BREW_KAFKA_CA_FILE"),
    "an expired certificate": ("EXPIRED", {}, "a certificate that has expired", "new certificate"),
    "another host's certificate": ("ELSEWHERE", {}, "a certificate that is for another", "a name that is in it"),
    "no TLS on SASL_SSL": ("LOCKED", {"protocol": "PLAINTEXT"}, "speaks SASL_SSL, not PLAINTEXT", "=SASL_SSL"),
    "no TLS on SSL": ("TLS", {"protocol": "PLAINTEXT"}, "speaks SSL, not PLAINTEXT", "=SSL"),
    "no user on SASL": (
        "CLEAR",
        {"protocol": "PLAINTEXT", "username": ""},
        "speaks SASL_PLAINTEXT, not PLAINTEXT",
        "BREW_KAFKA_USERNAME",
    ),
    "TLS where none is": ("", {"protocol": "SSL"}, "speaks PLAINTEXT, not SSL", "=PLAINTEXT"),
    "SASL where none is": ("TLS", {"protocol": "SASL_SSL", "username": "brew"}, "speaks SSL, not SASL_SSL", "=SSL"),
    "no TLS for SASL": ("LOCKED", {"protocol": "SASL_PLAINTEXT"}, "speaks SASL_SSL, not SASL_PLAINTEXT", "=SASL_SSL"),
    "TLS for clear SASL": ("CLEAR", {"protocol": "SASL_SSL"}, "speaks SASL_PLAINTEXT, not SASL_SSL", "SASL_PLAINTEXT"),
    "another mechanism": (
        "SCRAM256",
        {"mechanism": Mechanism.SCRAM_SHA_512},
        "does not take SCRAM-SHA-512, but SCRAM-SHA-256",
        "BREW_KAFKA_SASL_MECHANISM",
    ),
    "no client certificate": ("MUTUAL", {}, "wants a client certificate", "BREW_KAFKA_CERT_FILE"),
    "a foreign client certificate": (
        "MUTUAL",
        {"certificate": "stranger.pem", "key": "stranger.key"},
        "refused the certificate in",
        "that the broker trusts",
    ),
}
HALF = "-----BEGIN CERTIFICATE-----\nMIIB"
# What is set to a file of this content (None: there is none), and what is said.
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no CA file": ({"ca": None}, "BREW_KAFKA_CA_FILE: FILE can't be read (no such file or directory)"),
    "an empty CA file": ({"ca": ""}, "BREW_KAFKA_CA_FILE: FILE is empty"),
    "no PEM": ({"ca": "certainly"}, "BREW_KAFKA_CA_FILE: FILE holds no certificate in PEM"),
    "half a CA file": ({"ca": HALF}, "BREW_KAFKA_CA_FILE: FILE holds no certificate in PEM, or only a part"),
    "half a certificate": ({"certificate": HALF}, "BREW_KAFKA_CERT_FILE: FILE holds no certificate in PEM, or only a"),
    "a key alone": ({"key": "key"}, "BREW_KAFKA_KEY_FILE is set without BREW_KAFKA_CERT_FILE"),
    "no password file": ({"password": None}, "BREW_KAFKA_PASSWORD_FILE: FILE can't be read (no such file"),
    "an empty password file": ({"password": ""}, "BREW_KAFKA_PASSWORD_FILE: FILE is empty"),
    "two lines for a password": ({"password": "a\nb\n"}, "BREW_KAFKA_PASSWORD_FILE: FILE must hold one line"),
    "bytes for a password": ({"password": b"\xff\xfe"}, "BREW_KAFKA_PASSWORD_FILE: FILE is no UTF-8 text"),
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


def changed(secured: Secured, listener: str, changes: dict[str, Any]) -> Settings:
    """Return the settings of a listener with these changes: files by their names in the broker's folder."""
    chosen = dict(changes)
    for name in chosen.keys() & {"ca", "certificate", "key"}:
        chosen[name] = chosen[name] and str(secured.folder / chosen[name])
    if "protocol" in chosen:
        chosen |= {"protocol": Protocol(chosen["protocol"]), "password": Secret("BREW_KAFKA_PASSWORD", PASSWORD)}
    settings = secured.settings(listener or "TLS", **chosen)
    return settings if listener else dataclasses.replace(settings, brokers=(secured.broker.address,))


@CLIENTS
@pytest.mark.parametrize("case", REFUSALS)
def test_a_broker_and_settings_that_do_not_fit(secured: Secured, case: str, client: KafkaClient) -> None:
    listener, changes, said, hint = REFUSALS[case]
    settings = dataclasses.replace(changed(secured, listener, changes), kafka_client=client)
    with pytest.raises(UnreachableError) as found, open_admin(settings):
        pass
    assert found.value.message.startswith(f"kafka {settings.brokers[0]} ")
    assert said in found.value.message
    assert hint in found.value.hint
    if case != "no user on SASL":  # such a listener answers a producer's first question, and hangs up at its second
        with pytest.raises(UnreachableError) as found:
            Producer(settings, node="test").close()
        assert said in found.value.message
    for word in (PASSWORD, WRONG.text):
        assert word not in str(found.value)


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_can_not_be_used_is_a_usage_error(
    secured: Secured, servers: dict[str, str], tmp_path: Path, case: str
) -> None:
    (name, content), said = *FILES[case][0].items(), FILES[case][1]
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    value: Any = Secret("BREW_KAFKA_PASSWORD", file=str(file)) if name == "password" else str(file)
    settings = secured.settings("LOCKED", **{name: value})
    settings = dataclasses.replace(settings, database_url=servers["BREW_DATABASE_URL"])
    roles = (("publish",), ("consume", "inventory"), ("serve", "order", "--port", "0")) if content is None else ()
    for command in (("groups",), *roles):
        ended = run(*command, env=environment(settings))
        assert ended.returncode == ExitCode.USAGE, ended.stderr
        assert said.replace(" FILE ", f" {file} ") in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


def test_a_key_of_another_certificate(secured: Secured) -> None:
    pair = {"certificate": str(secured.folder / "client.pem"), "key": str(secured.folder / "stranger.key")}
    with (
        pytest.raises(BrewError, match="is not that of the certificate in") as found,
        open_admin(secured.settings("MUTUAL", **pair)),
    ):
        pass
    assert found.value.exit_code == ExitCode.USAGE


def test_an_encrypted_key_without_its_password_asks_nobody(secured: Secured, tmp_path: Path) -> None:
    key = tmp_path / "locked.key"
    key.write_bytes(locked(secured.folder / "client.key"))
    pair = {"certificate": str(secured.folder / "client.pem"), "key": str(key)}
    for password, said in ((Secret("BREW_KAFKA_KEY_PASSWORD"), "it wants"), (WRONG, "does not open with")):
        with (
            pytest.raises(BrewError, match=said),
            open_admin(secured.settings("MUTUAL", **pair, key_password=password)),
        ):
            pass


def test_settings_that_are_wrong_in_themselves() -> None:
    for variables, said in (
        ({"BREW_KAFKA_SECURITY_PROTOCOL": "TLS"}, "'TLS' is none of Kafka's"),
        ({"BREW_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "wants a user: BREW_KAFKA_USERNAME is not set"),
        (
            {"BREW_KAFKA_PASSWORD": "a", "BREW_KAFKA_PASSWORD_FILE": "/b"},
            "BREW_KAFKA_PASSWORD and BREW_KAFKA_PASSWORD_FILE are both set",
        ),
    ):
        ended = run("groups", env={"BREW_KAFKA_BROKERS": "127.0.0.1:1", **variables})
        assert ended.returncode == ExitCode.USAGE
        assert said in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


def test_a_file_that_is_gone_while_a_role_runs_is_the_reason_of_its_outage(tmp_path: Path) -> None:
    security = KafkaSecurity(protocol=Protocol.SSL, ca=str(tmp_path / "gone"))
    said = reason(Settings(brokers=("127.0.0.1:1",), kafka_security=security), UnavailableError("no answer"))
    assert said == f"BREW_KAFKA_CA_FILE: {tmp_path / 'gone'} can't be read (no such file or directory)"


@CLIENTS
def test_a_command_that_is_refused_ends_at_once_with_one_line(
    secured: Secured, servers: dict[str, str], client: KafkaClient
) -> None:
    settings = dataclasses.replace(
        secured.settings("LOCKED", password=WRONG),
        database_url=servers["BREW_DATABASE_URL"],
        kafka_client=client,
    )
    for command in (("groups",), ("topic", "create"), ("consume", "inventory"), ("verify",)):
        ended = run(*command, env=environment(settings))
        assert ended.returncode == ExitCode.UNREACHABLE, (command, ended.stdout, ended.stderr)
        assert "refused user brew" in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert WRONG.text not in ended.stdout + ended.stderr
