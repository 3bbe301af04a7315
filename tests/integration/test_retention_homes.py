"""Retention where a downstream has a database of its own: its dedup rows go in step, and later where it was away."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from brewctl.delivery import database
from brewctl.delivery.schema import homes
from brewctl.doctor import Finding, Verdict, postgres
from brewctl.errors import UnreachableError
from brewctl.verify import verify
from tests.integration.chain_tools import PROJECTIONS, Chain, broken, open_chain
from tests.integration.retention_tools import attached, left, park, plan, remove_records, run, small_partitions

NOWHERE = "postgresql://somebody@127.0.0.1:1/notifications"


@pytest.fixture
def own(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chain, Any, str]]:
    """A chain of twelve orders, with the second downstream in a database of its own, and the connection to that."""
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain, chain.rig.own_database() as url:
        chain.rig.move("notifications", url)
        assert chain.rig.brewctl("db", "init", "notifications").returncode == 0
        small_partitions(chain.rig.connection)
        (home,) = homes.apart(chain.rig.settings)
        with database.connect(home.settings) as connection:
            small_partitions(connection)
            rows = [chain.order() for _ in range(12)]
            for row in rows:
                chain.send(row)
                processed = "INSERT INTO processed_events (consumer, outbox_id) VALUES ('notifications', %s)"
                connection.execute(processed, (row.outbox_id,))
                effect = "INSERT INTO notifications_log (order_id, node_id, channel) VALUES (%s, 'test', 'push')"
                connection.execute(effect, (row.order_id,))
            chain.consume(PROJECTIONS[:1])
            chain.commit("notifications", {0: 12})
            remove_records(chain)
            yield chain, connection, url


def test_the_dedup_rows_of_every_database_go_in_step(own: tuple[Chain, Any, str]) -> None:
    chain, elsewhere, _ = own
    assert run(chain.rig.settings).dropped == ["outbox_p0", "processed_events_p0", "processed_events_p0"]
    for connection in (chain.rig.connection, elsewhere):
        assert attached(connection, "processed_events") == [f"processed_events_p{n}" for n in (10, 20, 30, 40, 50)]
        assert connection.execute("SELECT dropped_below FROM retention").fetchone() == (10,)
    assert broken(verify(chain.rig.settings, late_s=0)) == {}


def test_what_a_group_has_not_processed_is_looked_for_in_its_own_database(own: tuple[Chain, Any, str]) -> None:
    chain, elsewhere, _ = own
    elsewhere.execute("DELETE FROM processed_events WHERE outbox_id = 7")
    (reason,) = plan(chain.rig.settings)[0].reasons
    assert reason.refused
    assert reason.text == "1 of its rows was never processed by group notifications, the first is outbox 7"
    park(elsewhere, "notifications", 7)
    (reason,) = plan(chain.rig.settings)[0].reasons
    assert not reason.refused
    assert reason.text.startswith("1 parked events of notifications wait to be redriven")


def test_a_database_that_is_away_keeps_partitions_and_is_done_by_a_later_run(own: tuple[Chain, Any, str]) -> None:
    chain, elsewhere, url = own
    chain.rig.move("notifications", NOWHERE)
    done = chain.rig.brewctl("db", "retention")
    assert done.returncode == 1
    assert "stays      outbox_p0: a database is away: downstream notifications: postgres 127.0.0.1:1" in done.stdout
    assert "left to a later run: downstream notifications: postgres 127.0.0.1:1" in done.stderr
    # Its partitions ahead were made all the same, in the databases that are there.
    assert len(attached(chain.rig.connection, "processed_events")) == 6

    chain.rig.move("notifications", url)
    # It was away just as its own were to go: the outbox's are gone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(homes, "connect", _away(homes.connect, chain))
        outcome = run(chain.rig.settings)
    assert outcome.dropped == ["outbox_p0", "processed_events_p0"], outcome.kept
    assert len(outcome.away) == 1
    assert attached(elsewhere, "processed_events")[0] == "processed_events_p0"
    assert broken(verify(chain.rig.settings, late_s=0)) == {}
    assert run(chain.rig.settings).dropped == ["processed_events_p0"]
    assert attached(elsewhere, "processed_events")[0] == "processed_events_p10"


def test_a_database_with_too_many_stray_ids_is_told_of_and_holds_up_nothing(own: tuple[Chain, Any, str]) -> None:
    chain, elsewhere, _ = own
    for place in range(1, 9):
        elsewhere.execute("SELECT make_partition('processed_events', %s)", (place * 1000,))
    chain.rig.connection.execute("ALTER TABLE outbox ALTER id RESTART WITH 500")
    there = attached(elsewhere, "processed_events")
    done = chain.rig.brewctl("db", "retention")
    assert done.returncode == 0, done.stderr
    assert "processed_events has no partition for id 500, and 8 for stray ids: " in done.stderr
    assert "processed_events_p500" in attached(chain.rig.connection, "processed_events")
    assert set(attached(elsewhere, "processed_events")) < set(there)  # old ones go all the same
    dry = chain.rig.brewctl("db", "retention", "--dry-run")
    assert "downstream notifications: processed_events_p8000: ids 8000 to 8009, " in dry.stdout


def _away(connect: Any, chain: Chain) -> Any:
    """Return a `connect` to homes that finds the second one away once the outbox's partition is gone."""

    def attempt(home: homes.Home, *arguments: Any, **options: Any) -> Any:
        if home.apart and "outbox_p0" not in left(chain.rig.connection):
            raise UnreachableError("downstream notifications: it is away")
        return connect(home, *arguments, **options)

    return attempt


def test_doctor_looks_at_the_partitions_of_every_database(own: tuple[Chain, Any, str]) -> None:
    chain, elsewhere, _ = own
    check = "partitions-notifications"
    where = f"{database.place(homes.apart(chain.rig.settings)[0].settings.database_url)} of downstream notifications"
    found = looked(chain)
    assert (found[check].verdict, found[check].found) == (Verdict.OK, f"ahead are 2 of processed_events in {where}")
    elsewhere.execute("DROP TABLE processed_events_p30")
    found = looked(chain)
    assert (found["partitions"].verdict, found[check].verdict) == (Verdict.OK, Verdict.WARN)
    assert found[check].found.startswith(f"ahead are 1 of processed_events in {where}: ")
    assert found[check].mend == "run `brewctl db retention`"
    assert chain.rig.brewctl("db", "retention").returncode == 0
    assert looked(chain)[check].verdict is Verdict.OK


def test_doctor_finds_a_database_that_dropped_more_than_the_restored_outbox_has_given_out(
    own: tuple[Chain, Any, str],
) -> None:
    chain, elsewhere, url = own
    assert looked(chain)["outbox-ids"].found == "the next is 13, which is new"
    elsewhere.execute("UPDATE retention SET dropped_below = 40")
    found = looked(chain)["outbox-ids"]
    where = f"{database.place(url)} of downstream notifications"
    said = f"the next is 13, and rows were dropped below 40 in {where}: new events will become dead letters there"
    assert (found.verdict, found.found) == (Verdict.FAIL, said)
    assert "docs/operations.md, backup and restore" in found.mend
    chain.rig.connection.execute(found.mend.split("`")[1].encode())
    assert looked(chain)["outbox-ids"].found == "the next is 40, which is new"


def test_doctor_goes_on_where_one_database_is_away(own: tuple[Chain, Any, str]) -> None:
    chain, _, _ = own
    chain.rig.move("notifications", NOWHERE)
    found = {each["check"]: each for each in json.loads(chain.rig.brewctl("doctor", "--json").stdout)["findings"]}
    away = found["database-notifications"]
    assert away["verdict"] == "fail"
    assert away["found"].startswith("downstream notifications: postgres 127.0.0.1:1")
    assert "partitions-notifications" not in found
    assert {found[check]["verdict"] for check in ("postgres", "partitions", "outbox-ids", "clock")} == {"ok"}


def looked(chain: Chain) -> dict[str, Finding]:
    return {each.check: each for each in postgres.check(chain.rig.settings)}
