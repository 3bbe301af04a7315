"""A secured sandbox's files: its certificates, and what its state says of them. The servers are among the acceptance
tests.
"""

import dataclasses
import datetime as dt
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from psycopg.conninfo import conninfo_to_dict

from brewctl import config
from brewctl.delivery.schema import grants
from brewctl.delivery.topics import acls
from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import certificates, cluster, parts, postgres_tls, secured, state
from brewctl.security import Mechanism, Protocol
from tests.unit.test_state import sandbox

NAMES = ("ca", "kafka", "postgres", "order")
PASSWORDS: Any = {"postgres": "one", "kafka": "two", "users": {"brew_order": "three"}}


def certificate(home: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((home / "tls" / f"{name}.pem").read_bytes())


def modes(home: Path) -> set[tuple[bool, int]]:
    """Of each file and folder: whether it is a folder, and who may do what with it."""
    return {(entry.is_dir(), stat.S_IMODE(entry.stat().st_mode)) for entry in (home / "tls").rglob("*")}


def files(home: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((home / "tls").iterdir())}


def at(days: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be so many days later."""

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Later":
            return super().now(tz) + dt.timedelta(days=days)

    monkeypatch.setattr("brewctl.sandbox.certificates.dt.datetime", Later)


def test_each_server_has_a_certificate_of_the_authority_for_this_machine_alone(tmp_path: Path) -> None:
    assert certificates.ensure(tmp_path, running=[])
    authority = certificate(tmp_path, "ca")
    for name in NAMES[1:]:
        leaf = certificate(tmp_path, name)
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(each.value) for each in names] == ["127.0.0.1", "localhost"]
        assert leaf.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=4 * 365)
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    uses = {
        name: certificate(tmp_path, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        for name in NAMES[1:]
    }
    client = x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH
    assert {name: client in list(use.value) for name, use in uses.items()} == {
        "kafka": True,  # brokers show it to each other
        "postgres": False,
        "order": False,
    }


def test_its_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        certificates.ensure(tmp_path, running=[])
        secured.write_passwords(tmp_path, **PASSWORDS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert modes(tmp_path) == {(True, 0o700), (False, 0o600)}


def test_modes_that_were_widened_are_set_again(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, running=[])
    secured.write_passwords(tmp_path, **PASSWORDS)
    for file in (tmp_path / "tls").rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    (tmp_path / "tls").chmod(0o755)
    assert not certificates.ensure(tmp_path, running=["postgres"])
    secured.write_passwords(tmp_path, **PASSWORDS)
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert modes(tmp_path) == {(True, 0o700), (False, 0o600)}


def test_what_is_there_stays(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, running=[])
    before = files(tmp_path)
    assert not certificates.ensure(tmp_path, running=[])
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", [f"{name}.{kind}" for name in NAMES for kind in ("pem", "key")])
@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"half", b"another's"], ids=str)
def test_a_file_that_can_not_be_used_waits_for_the_servers_end_and_is_made_anew(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    certificates.ensure(tmp_path, running=[])
    file = tmp_path / "tls" / name
    if content is None:
        file.unlink()
    elif content == b"half":
        file.write_bytes(file.read_bytes()[:90])
    elif content == b"another's":
        (tmp_path / "other").mkdir()
        certificates.ensure(tmp_path / "other", running=[])
        file.write_bytes((tmp_path / "other" / "tls" / name).read_bytes())
    else:
        file.write_bytes(content)
    with pytest.raises(BrewError) as refused:
        certificates.ensure(tmp_path, running=["postgres"])
    assert "\n" not in str(refused.value)
    assert refused.value.message.startswith(f"{tmp_path}/tls/")
    assert refused.value.hint == "run `brewctl down`, then `brewctl up`, which makes it anew"
    assert certificates.ensure(tmp_path, running=[])
    assert not certificates.ensure(tmp_path, running=[])


def test_kafkas_one_file_is_written_again_at_any_time(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, running=[])
    before = files(tmp_path)
    (tmp_path / "tls" / "kafka.store.pem").unlink()
    assert not certificates.ensure(tmp_path, running=["postgres"])
    assert files(tmp_path) == before


def test_certificates_near_their_end_are_made_anew_where_no_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.ensure(tmp_path, running=[])
    first = certificate(tmp_path, "kafka")
    at(5 * 365 - 30, monkeypatch)
    assert not certificates.ensure(tmp_path, running=["kafka-1"])
    assert certificates.ensure(tmp_path, running=[])
    assert certificate(tmp_path, "kafka").not_valid_after_utc > first.not_valid_after_utc + dt.timedelta(days=365)


@pytest.mark.parametrize("days", [6 * 365, -3])
def test_certificates_of_another_time_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    certificates.ensure(tmp_path, running=[])
    at(days, monkeypatch)
    with pytest.raises(BrewError, match=r"tls/\w+\.pem is valid only from 20\d\d-\d\d-\d\d to 20\d\d-\d\d-\d\d"):
        certificates.ensure(tmp_path, running=["kafka-1"])


def test_keys_are_in_the_form_that_java_and_postgres_read(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, running=[])
    for name in NAMES:
        pem = (tmp_path / "tls" / f"{name}.key").read_bytes()
        assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
        assert serialization.load_pem_private_key(pem, None).public_key() == certificate(tmp_path, name).public_key()


def secure_sandbox() -> state.State:
    known = sandbox()
    known.secure, known.kafka_password, known.kafka_internal = True, "hunter3", [29092, 29093]
    known.users = {"brew_order": "hunter4"}
    return known


def test_commands_find_files_and_no_passwords(tmp_path: Path) -> None:
    home = tmp_path / "a home;of, mine=%41&?#ü"
    home.mkdir()
    state.save(home, secure_sandbox())
    found = state.endpoints(home)
    assert "hunter" not in str(found)
    settings = config.resolve({}, {}, found)
    security = settings.kafka_security
    assert (security.protocol, security.mechanism) == (Protocol.SASL_SSL, Mechanism.SCRAM_SHA_512)
    assert (security.username, security.password.file, security.ca) == (
        "brew",
        str(home / "tls" / "kafka-password"),
        str(home / "tls" / "ca.pem"),
    )
    assert conninfo_to_dict(settings.database_url) == {
        "user": "brew",
        "host": "127.0.0.1",
        "port": "5433",
        "dbname": "brew",
        "sslmode": "verify-full",
        "sslrootcert": str(home / "tls" / "ca.pem"),
        "passfile": str(home / "tls" / "pgpass"),
    }


def test_a_roles_user_has_files_of_its_own(tmp_path: Path) -> None:
    state.save(tmp_path, secure_sandbox())
    secured.folder(tmp_path).mkdir()
    secured.write_passwords(tmp_path, **PASSWORDS)
    found = state.endpoints(tmp_path, role="order")
    assert "hunter" not in str(found)
    settings = config.resolve({}, {}, found)
    assert settings.kafka_security.username == "brew_order"
    assert Path(settings.kafka_security.password.file).read_text() == "three\n"
    url = conninfo_to_dict(settings.database_url)
    assert url["user"] == "brew_order"
    assert Path(str(url["passfile"])).read_text() == "127.0.0.1:*:*:brew_order:three\n"


def test_a_user_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    state.save(tmp_path, secure_sandbox())
    with pytest.raises(UsageError, match=r"^this sandbox has no user for role 'loyalty': it has order$"):
        state.endpoints(tmp_path, role="loyalty")
    state.save(tmp_path, sandbox())
    with pytest.raises(UsageError, match="this sandbox has a single user: it was made without --secure: run `brewctl"):
        state.endpoints(tmp_path, role="order")


def test_its_users_are_those_that_get_rights() -> None:
    rules = acls.rules(config.Settings(), prefix=grants.PREFIX)
    assert {rule.user for rule in rules} == {secured.name(role) for role in secured.ROLES}


def test_a_secured_state_is_loaded_as_it_was_saved_wherever_it_is(tmp_path: Path) -> None:
    state.save(tmp_path, secure_sandbox())
    loaded = state.load(tmp_path)
    assert loaded == secure_sandbox()
    assert loaded is not None
    assert loaded.home == tmp_path
    assert str(tmp_path) not in (tmp_path / "state.json").read_text()
    assert loaded.ports["kafka-2"] == (9093, 19093, 29093)


def test_an_older_state_is_not_secured(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    path = tmp_path / "state.json"
    older = json.loads(path.read_text())
    for name in ("secure", "kafka_password", "kafka_internal", "users"):
        del older[name]
    path.write_text(json.dumps(older))
    loaded = state.load(tmp_path)
    assert loaded is not None
    assert not loaded.secure
    assert loaded.database_url == "postgresql://brew:hunter2@127.0.0.1:5433/brew"


class Silent:
    def step(self, _text: str) -> None:
        pass

    def advance(self, _done: int, _total: int, _what: str) -> None:
        pass


@pytest.mark.parametrize(("there", "wanted", "how"), [(True, False, "with"), (False, True, "without")])
def test_a_sandbox_stays_as_it_was_made(tmp_path: Path, there: bool, wanted: bool, how: str) -> None:
    known = secure_sandbox() if there else sandbox()
    known.servers.clear()
    state.save(tmp_path, known)
    with pytest.raises(UsageError) as refused:
        cluster.up(tmp_path, cluster.Options(secure=wanted), Silent())
    hint = "run `brewctl down --purge` first, which removes its data"
    assert str(refused.value) == f"this sandbox was made {how} --secure: {hint}"
    assert state.load(tmp_path) == known


@pytest.mark.parametrize(
    ("there", "wanted", "has"), [(True, False, "a database for each service"), (False, True, "one database")]
)
def test_a_sandbox_keeps_its_databases(tmp_path: Path, there: bool, wanted: bool, has: str) -> None:
    known = dataclasses.replace(sandbox(), separate=there)
    known.servers.clear()
    state.save(tmp_path, known)
    with pytest.raises(UsageError) as refused:
        cluster.up(tmp_path, cluster.Options(separate=wanted), Silent())
    hint = "run `brewctl down --purge` first, which removes its data"
    assert str(refused.value) == f"this sandbox has {has}: {hint}"
    assert state.load(tmp_path) == known


def test_each_role_is_told_of_every_database_as_its_own_user(tmp_path: Path) -> None:
    known = dataclasses.replace(secure_sandbox(), separate=True, home=tmp_path)
    urls = known.database_urls("brew_inventory")
    place = f"postgresql://brew_inventory@127.0.0.1:{known.postgres_port}"
    assert [url.partition("?")[0] for url in urls.values()] == [
        f"{place}/brew", f"{place}/inventory", f"{place}/notifications",
    ]  # fmt: skip
    assert [*urls] == ["BREW_DATABASE_URL", "BREW_INVENTORY_DATABASE_URL", "BREW_NOTIFICATIONS_DATABASE_URL"]
    assert all("users/brew_inventory.pgpass" in url for url in urls.values())


def test_a_sandbox_that_can_not_be_secured_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_CERTIFICATES", "no-such-library")
    with pytest.raises(BrewError, match=r"\(no-such-library missing\): run `pip install 'brewctl\[sandbox\]'`"):
        cluster.up(tmp_path, cluster.Options(secure=True), Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    monkeypatch.undo()
    monkeypatch.setattr(postgres_tls, "_ARCHIVES", {})
    with pytest.raises(BrewError, match="there is no PostgreSQL with TLS for "):
        cluster.up(tmp_path, cluster.Options(secure=True), Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_plain_sandbox_needs_no_certificates() -> None:
    code = "import sys, brewctl.cli.sandbox, brewctl.sandbox.cluster; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_archive_that_is_none_is_one_line(tmp_path: Path) -> None:
    jar = tmp_path / "some.jar"
    jar.write_bytes(b"rubbish")
    with pytest.raises(BrewError) as refused:
        postgres_tls._unpack(jar, tmp_path / "postgres")
    assert str(refused.value).startswith(f"{jar} can't be unpacked (")
    assert [path.name for path in tmp_path.iterdir()] == ["some.jar"]
