"""A PostgreSQL of the tests' own that wants TLS."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings
from brewctl.errors import BrewError
from brewctl.sandbox import postgres, postgres_tls, processes, surroundings
from tests.integration.secured_broker import write_pair, write_pairs

USER, PASSWORD = "brew", "quiet/secret"
# `picky` wants a client certificate too, and nobody comes in without TLS.
_HBA = """
hostssl all picky 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
hostssl all,replication all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class TlsPostgres:
    """The server, and the files for its clients."""

    port: int
    folder: Path
    pid: int

    def url(self, *, user: str = USER, password: str = PASSWORD, **parameters: str) -> str:
        """Return a URL that trusts the server's authority, with other `parameters`; an empty one is left out."""
        chosen = {"sslmode": "verify-full", "sslrootcert": str(self.folder / "ca.pem"), "host": "127.0.0.1"}
        named = {name: value for name, value in (chosen | parameters).items() if value}
        return make_conninfo(
            port=self.port, user=user, dbname="postgres", **({"password": password} if password else {}), **named
        )

    def settings(self, **parameters: str) -> Settings:
        """Return settings with that URL."""
        return Settings(database_url=self.url(**parameters), configured=frozenset({"database_url"}))

    def show(self, name: str) -> None:
        """Have it show another certificate from now on, or soon."""
        for suffix in (".pem", ".key"):
            new = self.folder / f"new{suffix}"
            shutil.copy(self.folder / f"{name}{suffix}", new)
            new.replace(self.folder / f"server{suffix}")
        os.kill(self.pid, signal.SIGHUP)


@contextlib.contextmanager
def tls_postgres(folder: Path) -> Iterator[TlsPostgres]:
    """Start one; skips where it can't be had."""
    try:
        postgres_tls.require()
        binaries = postgres_tls.prepare(lambda _done, _total, _what: None)
    except BrewError as error:
        pytest.skip(f"no PostgreSQL with TLS: {error}")
    folder.mkdir(parents=True)
    _write_certificates(folder)
    port = processes.free_port()
    postgres._initialize(folder, folder / "data", PASSWORD, binaries)
    (folder / "hba").write_text(_HBA)
    chosen = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "shared_buffers": "32MB",
        "ssl": "on",
        "ssl_cert_file": "../server.pem",
        "ssl_key_file": "../server.key",
        "ssl_ca_file": "../ca.pem",
        "hba_file": "hba",  # made absolute before it goes to its data
    }
    server = processes.spawn(
        "postgres-tls",
        [
            *postgres._as_user(),
            binaries / "postgres",
            "-D",
            "data",
            "-p",
            str(port),
            *(part for name, value in chosen.items() for part in ("-c", f"{name}={value}")),
        ],
        port=port,
        log=folder / "postgres.log",
        cwd=folder,
        env=surroundings.environment(),
    )
    found = TlsPostgres(port, folder, server.pid)
    try:
        processes.wait_ready([server], lambda: not postgres.refusal(found.url()), timeout_s=60)
        with psycopg.connect(found.url(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE picky LOGIN SUPERUSER PASSWORD '{PASSWORD}'".encode())
        yield found
    finally:
        processes.end([server], postgres.STOP)


def _write_certificates(folder: Path) -> None:
    authority = write_pairs(folder, elsewhere="db.example", client="picky")
    for name in ("good", "server"):
        write_pair(folder, name, authority.issue_cert("127.0.0.1", "localhost"))
    for key in folder.glob("*.key"):
        key.chmod(0o600)
