"""PostgreSQL over TLS, by secrets in files, and what is said where something does not fit."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.client import OrderClient
from brewctl.config import Settings, environment, resolve
from brewctl.delivery import database
from brewctl.errors import ExitCode, UnreachableError, UsageError
from brewctl.lab.play.nodes import Nodes
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, open_rig, run
from tests.integration.tls_postgres import PASSWORD, TlsPostgres, tls_postgres

# Of the URL: what is otherwise (a name of a file in the server's folder where it ends like one), and what is said.
REFUSALS = {
    "a wrong password": ({"password": "wrong-one"}, "refused the password", "BREW_DATABASE_URL"),
    "no password": ({"password": ""}, "wants a password", "BREW_DATABASE_URL"),
    "no TLS": ({"sslmode": "disable", "sslrootcert": ""}, "wants TLS", "sslmode=verify-full"),
    "a foreign authority": ({"sslrootcert": "stranger-ca.pem"}, "a certificate that is not trusted", "stranger-ca.pem"),
    "no client certificate": ({"user": "picky"}, "wants a client certificate", "sslcert="),
    "a foreign client certificate": (
        {"user": "picky", "sslcert": "stranger.pem", "sslkey": "stranger.key"},
        "refused the client certificate",
        "authority",
    ),
}
# What is in a file, and which of the URL's parameters names it; the mode; what is said.
FILES = {
    "no authority": ("sslrootcert", None, 0o600, 'root certificate file "FILE" does not exist'),
    "an empty authority": ("sslrootcert", "", 0o600, 'could not read root certificate file "FILE"'),
    "no PEM": ("sslrootcert", "certainly", 0o600, 'could not read root certificate file "FILE"'),
    "half a certificate": ("sslcert", "-----BEGIN CERTIFICATE-----\nMIIB", 0o600, 'certificate file "FILE"'),
    "a key that others may read": ("sslkey", "client.key", 0o644, 'private key file "FILE" has group or world access'),
    "another certificate's key": (
        "sslkey",
        "stranger.key",
        0o600,
        'private key file "FILE": key values mismatch',
    ),
    "half a key": ("sslkey", "-----BEGIN PRIVATE KEY-----\nMIIB", 0o600, 'could not load private key file "FILE"'),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsPostgres]:
    with tls_postgres(tmp_path_factory.mktemp("tls") / "postgres") as found:
        yield found


@pytest.fixture
def rig(server: TlsPostgres, servers: dict[str, str], tmp_path: Path) -> Iterator[Rig]:
    with open_rig(servers | {"BREW_DATABASE_URL": server.url()}, tmp_path / "logs") as found:
        yield found


def in_folder(server: TlsPostgres, parameters: dict[str, str]) -> dict[str, str]:
    return {
        name: str(server.folder / value) if value.endswith((".pem", ".key")) else value
        for name, value in parameters.items()
    }


def connect(settings: Settings) -> None:
    with database.connect(settings) as connection:
        connection.execute("SELECT 1")


def buy(address: str, count: int = 5) -> None:
    with OrderClient([address]) as client:
        for _ in range(count):
            client.create("c1", amount_cents=450, currency="EUR")


def reserved(rig: Rig) -> int:
    (count,) = rig.connection.execute("SELECT count(*) FROM inventory_reservations").fetchone() or (0,)
    return int(count)


def test_the_story_over_tls(rig: Rig) -> None:
    rig.start("inventory-1", "consume", "inventory")
    _, address = rig.serve()
    buy(address)
    rig.wait("every order is reserved", lambda: reserved(rig) == 5)
    encrypted = (
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE backend_type LIKE 'client%'"
    )
    assert rig.connection.execute(encrypted.encode()).fetchone() == (True,)
    examined = rig.brewctl("doctor")
    assert "isolation" in examined.stdout
    assert "can't be" not in examined.stdout


def test_a_client_certificate(server: TlsPostgres) -> None:
    pair = {"user": "picky", "sslcert": "client.pem", "sslkey": "client.key"}
    connect(server.settings(**in_folder(server, pair)))


def test_variables_of_libpq_say_the_rest_where_the_url_asks_for_tls(
    server: TlsPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", str(server.folder / "ca.pem"))
    connect(server.settings(sslrootcert=""))
    monkeypatch.setenv("PGSSLROOTCERT", str(server.folder / "stranger-ca.pem"))
    with pytest.raises(UnreachableError, match="is not trusted"):
        connect(server.settings(sslrootcert=""))


def test_a_file_of_passwords(server: TlsPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:*:*:*:{PASSWORD}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    connect(server.settings(password=""))


@pytest.mark.parametrize("case", REFUSALS)
def test_a_server_and_a_url_that_do_not_fit(server: TlsPostgres, case: str) -> None:
    parameters, said, hint = REFUSALS[case]
    settings = server.settings(**in_folder(server, parameters))
    with pytest.raises(UnreachableError) as found:
        connect(settings)
    assert found.value.message.startswith("postgres 127.0.0.1:")
    assert said in found.value.message
    assert hint in found.value.hint
    assert "\n" not in str(found.value)
    assert "wrong-one" not in str(found.value)


@pytest.mark.parametrize(
    ("certificate", "said"),
    [("expired", "a certificate that has expired"), ("elsewhere", "a certificate for another host name")],
)
def test_a_certificate_that_does_not_hold(server: TlsPostgres, certificate: str, said: str) -> None:
    def refused() -> bool:
        try:
            connect(server.settings())
        except UnreachableError as error:
            return said in error.message
        return False

    def taken() -> bool:
        with contextlib.suppress(UnreachableError):
            connect(server.settings())
            return True
        return False

    server.show(certificate)
    try:
        wait_until("it shows its other certificate", refused, timeout_s=60)
        ended = run("counts", env={"BREW_DATABASE_URL": server.url()})
        assert ended.returncode == ExitCode.UNREACHABLE
        assert said in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
    finally:
        server.show("good")
        wait_until("it shows its own again", taken, timeout_s=60)


def test_a_server_without_tls(servers: dict[str, str]) -> None:
    url = make_conninfo(servers["BREW_DATABASE_URL"], sslmode="verify-full", sslrootcert="system")
    with psycopg.connect(servers["BREW_DATABASE_URL"]) as plain:
        if plain.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,):
            pytest.skip("the server speaks TLS")
    with pytest.raises(UnreachableError, match="speaks no TLS"):
        connect(Settings(database_url=url))


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_can_not_be_used_is_a_usage_error(server: TlsPostgres, tmp_path: Path, case: str) -> None:
    parameter, content, mode, said = FILES[case]
    file = tmp_path / "file"
    if content is not None:
        file.write_text((server.folder / content).read_text() if content.endswith(".key") else content)
        file.chmod(mode)
    pair = {"sslcert": "client.pem", "sslkey": "client.key"} if parameter != "sslrootcert" else {}
    settings = server.settings(**in_folder(server, pair) | {parameter: str(file)})
    with pytest.raises(UsageError) as found:
        connect(settings)
    assert said.replace("FILE", str(file)) in found.value.message
    assert found.value.message.startswith("BREW_DATABASE_URL: ")
    assert "\n" not in str(found.value)
    assert PASSWORD not in str(found.value)


@pytest.mark.parametrize("by", ["BREW_DATABASE_URL_FILE", "BREW_DATABASE_PASSWORD_FILE"])
def test_a_password_that_changes_while_roles_run_is_read_again(rig: Rig, tmp_path: Path, by: str) -> None:
    whole = rig.settings.database_url
    file = tmp_path / "secret"
    name = rig.connection.info.dbname

    def put(password: str) -> None:
        file.write_text(
            make_conninfo(whole, user="rotated", password=password) if by.endswith("URL_FILE") else password
        )

    put("first")
    rig.connection.execute(b"DROP ROLE IF EXISTS rotated")
    rig.connection.execute(b"CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'first'")
    env = {**environment(rig.settings), "BREW_DATABASE_URL": "", by: str(file)}
    if not by.endswith("URL_FILE"):
        env["BREW_DATABASE_URL"] = make_conninfo(whole, user="rotated", password="")
    settings = resolve({}, env, {})
    (tmp_path / "rotated").mkdir()
    with Nodes(settings, logs=tmp_path / "rotated", on_line=lambda _line: None) as nodes:
        rotated = dataclasses.replace(rig, settings=settings, nodes=nodes)
        inventory = rotated.start("inventory-1", "consume", "inventory")
        order, address = rotated.serve()
        buy(address)
        rig.wait("every order is reserved", lambda: reserved(rig) == 5)
        rig.connection.execute(b"ALTER ROLE rotated PASSWORD 'second'")
        put("second")
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated' AND datname = %s"
        rig.connection.execute(end.encode(), [name])
        buy(address)
        rig.wait("every order is reserved", lambda: reserved(rig) == 10)
        assert inventory.alive
        assert order.alive


def test_a_url_in_a_file(server: TlsPostgres, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(server.url() + "\n")
    settings = resolve({}, {"BREW_DATABASE_URL_FILE": str(file)}, {})
    connect(settings)
    assert "database_url" in settings.configured
    child = environment(settings)
    assert child["BREW_DATABASE_URL"] == ""
    assert PASSWORD not in str(child)
    connect(resolve({}, child, {}))


def test_a_file_with_a_url_or_a_password_that_can_not_be_used(server: TlsPostgres, tmp_path: Path) -> None:
    file = tmp_path / "file"
    url = server.url(password="")
    for variables, content, said in (
        ({"BREW_DATABASE_URL_FILE": str(file)}, None, f"BREW_DATABASE_URL_FILE: {file} can't be read"),
        ({"BREW_DATABASE_URL_FILE": str(file)}, "", f"BREW_DATABASE_URL_FILE: {file} is empty"),
        ({"BREW_DATABASE_URL_FILE": str(file)}, "postgresql://a:b@[/", f"BREW_DATABASE_URL_FILE: {file} is no Postgre"),
        ({"BREW_DATABASE_URL_FILE": str(file)}, "postgresql://a/\nb", "must hold one line"),
        ({"BREW_DATABASE_URL_FILE": str(file), "BREW_DATABASE_URL": url}, url, "are both set"),
        ({"BREW_DATABASE_PASSWORD_FILE": str(file), "BREW_DATABASE_URL": url}, None, "BREW_DATABASE_PASSWORD_FILE: "),
        (
            {"BREW_DATABASE_PASSWORD_FILE": str(file), "BREW_DATABASE_PASSWORD": "a", "BREW_DATABASE_URL": url},
            "a",
            "BREW_DATABASE_PASSWORD and BREW_DATABASE_PASSWORD_FILE are both set",
        ),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        ended = run("counts", env=variables)
        assert ended.returncode == ExitCode.USAGE, ended.stderr
        assert said in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


def test_a_downstreams_own_database_by_a_file(rig: Rig, servers: dict[str, str], tmp_path: Path) -> None:
    name = f"own_{os.getpid()}"
    file = tmp_path / "own-url"
    with psycopg.connect(servers["BREW_DATABASE_URL"], autocommit=True) as maintenance:
        maintenance.execute(f"CREATE DATABASE {name}".encode())
        try:
            file.write_text(make_conninfo(servers["BREW_DATABASE_URL"], dbname=name) + "\n")
            env = {**rig.env, "BREW_INVENTORY_DATABASE_URL_FILE": str(file)}
            made = run("db", "init", "inventory", env=env)
            assert made.returncode == 0, made.stderr
            assert f"/{name}" in made.stdout
            both = run("db", "init", "inventory", env={**env, "BREW_INVENTORY_DATABASE_URL": file.read_text().strip()})
            assert both.returncode == ExitCode.USAGE
            assert "BREW_INVENTORY_DATABASE_URL and BREW_INVENTORY_DATABASE_URL_FILE are both set" in both.stderr
        finally:
            maintenance.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
