"""What `brewctl verify` costs others, how long it waits, and that it works behind a pooler."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import Reader
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from brewctl.sandbox.processes import free_port
from brewctl.verify import verify
from tests.conftest import limited
from tests.integration.chain_tools import Chain, broken, open_chain


@pytest.fixture
def chain(servers: dict[str, str], tmp_path: Path) -> Iterator[Chain]:
    with open_chain(servers, tmp_path / "logs") as chain:
        yield chain


# What it costs the others, and how long it waits


def sessions(chain: Chain) -> Any:
    """Sessions of a verification that hold VACUUM back."""
    return chain.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND application_name = 'brewctl' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)"
    ).fetchall()


def test_no_snapshot_is_held_while_the_topic_is_read(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.send(chain.order())
    chain.consume()
    held: list[Any] = []
    read = Reader.read

    def looking(reader: Reader, topic: str, ranges: dict[int, tuple[int, int]]) -> Any:
        held.append(sessions(chain))
        return read(reader, topic, ranges)

    monkeypatch.setattr(Reader, "read", looking)
    found = verify(chain.rig.settings)
    assert found.ok
    assert held == [[], []]
    assert found.facts.snapshot_s > 0


def locked(chain: Chain, seconds: float) -> threading.Timer:
    """Keep anyone from reading the orders for a while."""
    gate = psycopg.connect(chain.rig.settings.database_url)
    gate.execute("LOCK TABLE orders")
    timer = threading.Timer(seconds, gate.close)
    timer.start()
    return timer


def test_a_statement_may_take_longer_than_the_answer_to_a_short_one(chain: Chain) -> None:
    chain.send(chain.order())
    chain.consume()
    hasty = limited(chain.rig.settings, database_connect_s=1, database_statement_s=2, database_answer_s=2.5)
    timer = locked(chain, 5)
    try:
        assert verify(hasty, statement_s=120).ok
    finally:
        timer.join()


def test_a_statement_that_is_too_long_is_named_with_the_option_that_mends_it(chain: Chain) -> None:
    timer = locked(chain, 30)
    try:
        with pytest.raises(BrewError, match=r"ended a statement of verify after \d+ s") as failure:
            verify(chain.rig.settings, statement_s=1)
        assert failure.value.exit_code == 1
        assert "--statement-timeout" in failure.value.hint
        shown = chain.rig.brewctl("verify", "--statement-timeout", "1")
    finally:
        timer.cancel()
        timer.function()
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.fixture
def pooled(chain: Chain) -> Iterator[Settings]:
    """The chain's servers, with the real PgBouncer in transaction mode before PostgreSQL."""
    if not (program := shutil.which("pgbouncer")):
        pytest.skip("needs pgbouncer, which is not installed")
    url = psycopg.conninfo.conninfo_to_dict(chain.rig.settings.database_url)
    port = free_port()
    # Not below pytest's own folder, which only this user may enter.
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    target = " ".join(f"{name}={value}" for name, value in url.items() if name in {"host", "port", "dbname"})
    (folder / "users.txt").write_text(f'"{url["user"]}" "{url.get("password", "")}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{url['dbname']} = {target} user={url['user']} password='{url.get('password', '')}'\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"auth_file = {folder}/users.txt\npool_mode = transaction\nignore_startup_parameters = options\n"
    )
    command = [program, str(folder / "pgbouncer.ini")]
    if os.geteuid() == 0:
        command = [program, "-u", "nobody", str(folder / "pgbouncer.ini")]
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "nobody")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    through = replace(
        chain.rig.settings,
        database_url=psycopg.conninfo.make_conninfo(chain.rig.settings.database_url, port=port, host="127.0.0.1"),
    )

    def answers() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            psycopg.connect(through.database_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until("pgbouncer", answers, timeout_s=30)
        yield through
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def test_it_works_through_pgbouncer_and_leaves_nothing_in_its_sessions(chain: Chain, pooled: Settings) -> None:
    for _ in range(3):
        chain.send(chain.order())
    chain.consume()
    found = verify(pooled, late_s=0)
    assert broken(found) == {}
    assert found.facts.orders == 3
    with psycopg.connect(pooled.database_url, autocommit=True) as connection:
        left = connection.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't'").fetchone()
        bound = connection.execute("SHOW statement_timeout").fetchone()
    assert (left, bound) == ((0,), ("0",))
    chain.execute("DELETE FROM inventory_reservations")
    assert set(broken(verify(pooled))) == {"inventory-missing", "inventory-dedup"}
