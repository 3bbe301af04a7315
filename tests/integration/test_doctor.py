"""`brewctl doctor` on real servers: it finds what is wrong, its cures cure, and where all is well it says so."""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from brewctl.delivery.broker import open_admin
from brewctl.delivery.schema.versions import PROGRAM
from brewctl.doctor import Finding, Verdict, examine, identity, postgres, sessions
from tests.conftest import Rig, open_rig

SERVERS = {
    *("postgres", "schema", "fsync", "full_page_writes", "synchronous_commit", "writable", "max_connections"),
    *(
        "isolation",
        "transactions",
        "outbox",
        "outbox-ids",
        "partitions",
        "clock",
        "kafka",
        "kafka-client",
        "topic",
        "dead-letters",
        "deployment",
    ),
    *("group-inventory", "group-notifications", "order-service"),
}


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all: the tests leave nothing behind, and the last one starts the nodes."""
    home = tmp_path_factory.mktemp("home")
    with open_rig(servers, home / "logs") as rig:
        rig.settings = dataclasses.replace(rig.settings, order_addrs=("127.0.0.1:1",))
        rig.env |= {"BREW_ORDER_ADDRS": "127.0.0.1:1", "BREW_HOME": str(home)}
        yield rig


def look(rig: Rig) -> dict[str, Finding]:
    """What is found of PostgreSQL."""
    return {each.check: each for each in postgres.check(rig.settings)}


def ask(rig: Rig) -> tuple[int, dict[str, str], dict[str, str]]:
    """Run the command: its exit code, and the verdicts and what mends it, by check, of the servers."""
    done = rig.brewctl("doctor", "--json")
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] in SERVERS]
    verdicts, mends = ({each["check"]: each[field] for each in found} for field in ("verdict", "mend"))
    return done.returncode, verdicts, mends


def test_its_cures_cure(rig: Rig) -> None:
    database = rig.connection.info.dbname
    rig.connection.execute("DROP TABLE notifications_log")
    rig.connection.execute("DROP INDEX orders_idempotency_key, outbox_ready")
    rig.connection.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    with open_admin(rig.settings) as admin:
        admin.delete_topic(rig.settings.dead_letter_topic)
    code, verdicts, mends = ask(rig)
    assert code == 1
    assert {check: mends[check] for check, verdict in verdicts.items() if verdict == "fail"} == {
        "schema": "run `brewctl db migrate`",
        "synchronous_commit": f'in psql: `ALTER DATABASE "{database}" RESET synchronous_commit;`',
        "dead-letters": "run `brewctl topic create`",
    }
    # What can't be asked without its tables is not asked.
    assert verdicts.keys() == SERVERS - {"outbox", "outbox-ids", "partitions"}
    assert (
        look(rig)["schema"].found
        == f"missing: orders_idempotency_key, notifications_log, outbox_ready (version {PROGRAM} of {PROGRAM})"
    )

    assert rig.brewctl("db", "init").returncode == 0
    assert rig.brewctl("topic", "create").returncode == 0
    rig.connection.execute(f'ALTER DATABASE "{database}" RESET synchronous_commit')
    found = {each.check: each.verdict for each in examine(rig.settings, Path(rig.env["BREW_HOME"]))}
    waiting = {"group-inventory", "group-notifications", "order-service"}
    assert {check: found[check] for check in SERVERS} == {
        check: Verdict.WARN if check in waiting else Verdict.OK for check in SERVERS
    }


def test_outbox_ids_that_are_used_again(rig: Rig) -> None:
    """A restored dump without its sequences, and TRUNCATE … RESTART IDENTITY: the cure is to be run as it stands."""
    add = "SELECT outbox_add(NULL, 'ids-1', 'e', 'x')"
    for _ in range(3):
        rig.connection.execute(add)
    assert look(rig)["outbox-ids"].verdict is Verdict.OK
    (highest,) = rig.connection.execute("SELECT max(id) FROM outbox").fetchone() or (0,)

    rig.connection.execute("ALTER SEQUENCE outbox_id_seq RESTART")
    found = look(rig)["outbox-ids"]
    statement = f"SELECT setval('public.outbox_id_seq', {highest});"
    assert (found.verdict, found.mend) == (Verdict.FAIL, f"in psql: `{statement}`")
    assert found.found == f"the next is 1, and the outbox has {highest}: new rows will be refused"
    with pytest.raises(psycopg.errors.UniqueViolation):
        rig.connection.execute(add)
    rig.connection.execute(statement.encode())
    assert look(rig)["outbox-ids"].found == f"the next is {highest + 1}, which is new"
    assert rig.connection.execute(add).fetchone() == (highest + 1,)

    # Who says where it goes on, instead of where it was, is right too.
    rig.connection.execute(f"ALTER SEQUENCE outbox_id_seq RESTART WITH {highest + 2}".encode())
    assert look(rig)["outbox-ids"].verdict is Verdict.OK

    # Each consumer is looked at, also one whose name is known to nobody here.
    rig.connection.execute(
        "INSERT INTO processed_events (consumer, outbox_id)"
        " SELECT c, n + length(c) FROM unnest('{a,loyalty,zz}'::text[]) c, generate_series(1, 5000) n"
    )
    rig.connection.execute("TRUNCATE outbox RESTART IDENTITY")
    found = look(rig)["outbox-ids"]
    assert found.verdict is Verdict.WARN
    assert found.found.startswith("the next is 1, and 5007 was processed before")
    statement = "SELECT setval('public.outbox_id_seq', 5007);"
    assert found.mend == f"unless another outbox gave it out, in psql: `{statement}`"
    rig.connection.execute(statement.encode())
    assert look(rig)["outbox-ids"].verdict is Verdict.OK
    rig.connection.execute("TRUNCATE processed_events, aggregates")


def test_outbox_ids_below_those_that_were_dropped(rig: Rig) -> None:
    """A sequence that is behind the watermark: where the partition of its ids is gone, no order finds a place."""
    (following,) = rig.connection.execute("SELECT last_value + is_called::int FROM outbox_id_seq").fetchone() or (0,)
    rig.connection.execute("INSERT INTO retention DEFAULT VALUES ON CONFLICT DO NOTHING")
    rig.connection.execute("UPDATE retention SET dropped_below = %s", (following,))
    assert look(rig)["outbox-ids"].verdict is Verdict.OK
    rig.connection.execute("UPDATE retention SET dropped_below = %s", (following + 50,))
    found = look(rig)["outbox-ids"]
    assert found.verdict is Verdict.FAIL
    assert (
        found.found
        == f"the next is {following}, and rows below {following + 50} were dropped: new orders will be refused"
    )
    statement = f"SELECT setval('public.outbox_id_seq', {following + 49});"
    assert found.mend == f"in psql: `{statement}`"
    rig.connection.execute(statement.encode())
    assert look(rig)["outbox-ids"].found == f"the next is {following + 50}, which is new"
    rig.connection.execute("UPDATE retention SET dropped_below = 0")


def test_outbox_ids_are_looked_up_by_indexes(rig: Rig) -> None:
    with rig.connection.transaction(force_rollback=True):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload, published_at)"
            " SELECT 'large-' || n, 't', '', now() FROM generate_series(1, 20000) n"
        )
        rig.connection.execute(
            "INSERT INTO processed_events (consumer, outbox_id)"
            " SELECT c, n FROM unnest('{a,loyalty,zz}'::text[]) c, generate_series(1, 20000) n"
        )
        rig.connection.execute("ANALYZE outbox, processed_events")
        asked = (
            "SELECT relname, coalesce(seq_scan, 0), coalesce(idx_tup_fetch, 0) < 100 FROM pg_stat_xact_user_tables"
            " WHERE relname IN ('outbox', 'processed_events') ORDER BY 1"
        )
        before = rig.connection.execute(asked).fetchall()
        assert [finding.check for finding in identity.check(rig.connection)] == ["outbox-ids"]
        assert rig.connection.execute(asked).fetchall() == before


def test_a_sequence_that_may_not_be_read_is_not_judged(rig: Rig) -> None:
    role = f"brew_test_{uuid.uuid4().hex[:8]}"
    with rig.connection.transaction(force_rollback=True):
        rig.connection.execute(f'CREATE ROLE "{role}"'.encode())
        rig.connection.execute(f'GRANT SELECT ON outbox, processed_events TO "{role}"'.encode())
        rig.connection.execute(f'SET LOCAL ROLE "{role}"'.encode())
        assert list(identity.check(rig.connection)) == []


def test_what_an_older_version_left(rig: Rig) -> None:
    rig.connection.execute("CREATE INDEX outbox_unpublished ON outbox (id)")
    left = look(rig)["schema"]
    assert (left.verdict, left.mend) == (Verdict.WARN, "run `brewctl db migrate`")
    assert "outbox_unpublished" in left.found
    assert rig.brewctl("db", "init").returncode == 0
    assert look(rig)["schema"].verdict is Verdict.OK


def test_an_index_that_is_not_valid_and_a_key_that_is_gone(rig: Rig) -> None:
    rig.connection.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'outbox_unpublished_by_aggregate'::regclass"
    )
    rig.connection.execute("ALTER TABLE processed_events DROP CONSTRAINT processed_events_pkey")
    schema = look(rig)["schema"]
    assert (schema.verdict, schema.mend) == (Verdict.FAIL, "run `brewctl db migrate`")
    key = "the primary key of processed_events (consumer, outbox_id)"
    assert schema.found == f"missing: outbox_unpublished_by_aggregate (invalid), {key} (version {PROGRAM} of {PROGRAM})"
    refused = rig.brewctl("consume", "inventory")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1] == f"brewctl: missing in postgres: {key}: run `brewctl db migrate`"
    assert rig.brewctl("db", "init").returncode == 0
    assert look(rig)["schema"].verdict is Verdict.OK


def test_an_isolation_level_that_makes_writes_fail(rig: Rig) -> None:
    database = rig.connection.info.dbname
    rig.connection.execute(f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = 'repeatable read'")
    found = look(rig)["isolation"]
    assert found.verdict is not Verdict.OK
    assert found.found.startswith("repeatable read")
    mend = f'ALTER DATABASE "{database}" RESET default_transaction_isolation;'
    assert found.mend == f"in psql: `{mend}`"
    rig.connection.execute(mend)
    assert look(rig)["isolation"].verdict is Verdict.OK


def test_who_holds_vacuum_back_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OLD_S", 0.0)
    url = rig.settings.database_url
    with contextlib.closing(psycopg.connect(url, application_name="pg_dump")) as dump:
        dump.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        dump.execute("SELECT count(*) FROM outbox")
        pid = dump.info.backend_pid
        found = look(rig)["transactions"]
        assert found.found.startswith("vacuum is held back for ")
        assert f"by pid {pid} (pg_dump)" in found.found
        command = f"SELECT pg_terminate_backend({pid});"
        assert f"`{command}`" in found.mend
        rig.connection.execute(command.replace(")", ", 20000)"))
    assert look(rig)["transactions"].verdict is Verdict.OK


def test_rows_that_wait(rig: Rig) -> None:
    insert = "INSERT INTO outbox (aggregate_id, topic, payload, created_at, failed_at) VALUES"
    rig.connection.execute(f"{insert} ('order-1', 't', '', now() - interval '300 s', NULL)")
    assert "has not been published for 30" in look(rig)["outbox"].found
    # What waits behind a row that was set aside waits for no publisher.
    rig.connection.execute("UPDATE outbox SET failed_at = now()")
    rig.connection.execute(f"{insert} ('order-1', 't', '', now() - interval '200 s', NULL)")
    assert "outbox list --failed" in look(rig)["outbox"].mend
    rig.connection.execute("DELETE FROM outbox")
    assert look(rig)["outbox"].verdict is Verdict.OK


def test_a_flow_that_is_well(rig: Rig) -> None:
    rig.env["BREW_ORDER_ADDRS"] = rig.serve()[1]
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    code, verdicts, _ = ask(rig)
    assert code == 0
    assert verdicts == dict.fromkeys(SERVERS, "ok")
