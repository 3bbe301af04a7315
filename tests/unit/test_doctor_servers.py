"""What `brewctl doctor` judges PostgreSQL, Kafka and the groups to be, by what they said."""

import pytest

from brewctl.delivery.broker import GroupMember, Partition, Unreached
from brewctl.delivery.repair.republish import Missing, Summary
from brewctl.delivery.schema import parts
from brewctl.delivery.schema.versions import MigrationState
from brewctl.delivery.topics.group_progress import GroupProgress
from brewctl.doctor import (
    Finding,
    Verdict,
    clocks,
    deployments,
    kafka,
    postgres,
    records,
    sessions,
)
from brewctl.doctor.postgres import Setting
from brewctl.doctor.sessions import Open
from brewctl.overview.consumer_groups import GroupView


def verdicts(*findings: Finding) -> list[str]:
    return [finding.verdict.value for finding in findings]


SETTINGS = {
    name: Setting(value, "default")
    for name, value in {
        "server_version": "18.1",
        "server_version_num": "180001",
        "transaction_read_only": "off",
        "default_transaction_read_only": "off",
        "max_connections": "100",
        "superuser_reserved_connections": "3",
    }.items()
}


def set_to(**values: str) -> dict[str, Setting]:
    return SETTINGS | {name: Setting(value, "default") for name, value in values.items()}


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (postgres.judge_version(set_to(server_version_num="110022"), "h:1/d"), "fail"),
        (postgres.judge_version(set_to(server_version_num="130016"), "h:1/d"), "warn"),
        (postgres.judge_version(set_to(server_version_num="140000"), "h:1/d"), "ok"),
        *(
            (postgres.judge_durable(name, Setting(value, "default"), "shop"), verdict)
            for name in ("fsync", "full_page_writes", "synchronous_commit")
            for value, verdict in (("off", "fail"), ("on", "ok"))
        ),
        # Room for one more order-service.
        (postgres.judge_connections(SETTINGS, 77, needed=20), "ok"),
        (postgres.judge_connections(SETTINGS, 78, needed=20), "warn"),
        (sessions.judge_transactions([]), "ok"),
        (postgres.judge_writable(SETTINGS, "shop"), "ok"),
    ],
)
def test_what_a_server_has(finding: Finding, verdict: str) -> None:
    assert verdicts(finding) == [verdict]
    assert bool(finding.mend) == (verdict != "ok")


@pytest.mark.parametrize(
    ("lacking", "left", "verdict"),
    [(["nodes"], {"outbox_unpublished"}, "fail"), ([], {"outbox_unpublished"}, "warn"), ([], set(), "ok")],
)
def test_the_schema(lacking: list[str], left: set[str], verdict: str) -> None:
    lacking_parts = [part for part in parts.PARTS if part.name in {*lacking, *left}]
    finding = postgres.schema_finding(MigrationState(frozenset(), tuple(lacking_parts), is_empty=False))
    assert verdicts(finding) == [verdict]
    assert ("brewctl db migrate" in finding.mend) == (verdict != "ok")


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        ("configuration file", "in psql: `ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();`"),
        ("command line", "start postgres without `-c fsync=off`"),
        ("database", 'in psql: `ALTER DATABASE "shop" RESET fsync;`'),
        ("user", "in psql: `ALTER ROLE CURRENT_USER RESET fsync;`"),
        ("database user", 'in psql: `ALTER ROLE CURRENT_USER IN DATABASE "shop" RESET fsync;`'),
        ("client", "BREW_DATABASE_URL"),
    ],
)
def test_a_setting_is_mended_where_it_was_made(source: str, mend: str) -> None:
    assert mend in postgres.judge_durable("fsync", Setting("off", source), "shop").mend


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"transaction_read_only": "on"}, "set BREW_DATABASE_URL to the primary"),
        ({"transaction_read_only": "on", "default_transaction_read_only": "on"}, "default_transaction_read_only = off"),
    ],
)
def test_a_server_that_takes_no_writes(settings: dict[str, str], mend: str) -> None:
    finding = postgres.judge_writable(set_to(**settings), "shop")
    assert finding.verdict is Verdict.FAIL
    assert mend in finding.mend


@pytest.mark.parametrize(
    ("found", "said", "mend"),
    [
        (
            [Open("session", 4711, "pg_dump", 3000.4, holds=True), Open("session", 4712, "", 61.0, holds=True)],
            "vacuum is held back for 50 minutes by pid 4711 (pg_dump) and 1 more: ",
            "`SELECT pg_terminate_backend(4711);`",
        ),
        (
            # One that holds nothing back is named after one that does.
            [Open("session", 4711, "psql", 300.0, holds=False), Open("session", 4712, "", 61.0, holds=True)],
            "vacuum is held back for 61 s by pid 4712 (no name) and 1 more: ",
            "`SELECT pg_terminate_backend(4712);`",
        ),
        (
            [Open("session", 4711, "psql", 300.0, holds=False)],
            "pid 4711 (psql) has had a transaction open for 5 minutes: ",
            "`SELECT pg_terminate_backend(4711);`",
        ),
        (
            [Open("prepared", None, "shop-1", 7200.0, holds=True)],
            "vacuum is held back for 120 minutes by the prepared transaction 'shop-1': ",
            "`ROLLBACK PREPARED 'shop-1';`",
        ),
        (
            [Open("slot", None, "standby", None, holds=True)],
            "vacuum is held back by replication slot 'standby', which has no reader: ",
            "`SELECT pg_drop_replication_slot('standby');`",
        ),
    ],
)
def test_what_holds_vacuum_back(found: list[Open], said: str, mend: str) -> None:
    finding = sessions.judge_transactions(found)
    assert finding.verdict is Verdict.WARN
    assert finding.found.startswith(said)
    assert mend in finding.mend


@pytest.mark.parametrize(
    ("ours", "others", "verdict"),
    [
        ("read committed", ("read committed", "default"), "ok"),
        ("read committed", None, "ok"),
        ("read uncommitted", None, "ok"),
        ("read committed", ("repeatable read", "database"), "warn"),
        ("serializable", ("serializable", "database"), "fail"),
    ],
)
def test_the_isolation_level(ours: str, others: tuple[str, str] | None, verdict: str) -> None:
    finding = postgres.judge_isolation(Setting(ours, "database"), others, "shop")
    assert verdicts(finding) == [verdict]
    assert ("ALTER DATABASE" in finding.mend) == (verdict != "ok")


def test_a_member_that_is_no_node() -> None:
    members = (GroupMember("inventory-1", (0, 1), "10.0.0.1"), GroupMember("loyalty-7", (2,), "10.0.0.7"))
    groups = [GroupView("inventory", "Stable", "roundrobin", members, ())]
    (finding,) = deployments.strangers(groups, {"inventory-1"})
    assert finding.verdict is Verdict.WARN
    assert finding.found.startswith("loyalty-7 at 10.0.0.7 reads for group inventory, and is no node of this database")
    assert list(deployments.strangers(groups, {"inventory-1", "loyalty-7"})) == []


@pytest.mark.parametrize(
    ("set_aside", "oldest_s", "mends"),
    [
        (0, None, [""]),
        (0, 5.0, [""]),
        (0, 61.0, ["brewctl start order"]),
        (2, 5.0, ["brewctl outbox list --failed"]),
        (2, 61.0, ["brewctl outbox list --failed", "brewctl start order"]),
    ],
)
def test_rows_that_wait(set_aside: int, oldest_s: float | None, mends: list[str]) -> None:
    findings = list(postgres.judge_outbox(set_aside, oldest_s))
    assert verdicts(*findings) == ["warn" if mend else "ok" for mend in mends]
    assert all(mend in finding.mend for finding, mend in zip(findings, mends, strict=True))


@pytest.mark.parametrize(
    ("before", "there", "after", "verdict"),
    [
        (100.0, 100.1, 100.2, "ok"),
        (100.0, 103.5, 104.0, "ok"),  # as slow as that, it may have been any time in between
        (100.0, 98.9, 100.0, "warn"),
        (100.0, 101.2, 100.1, "warn"),
        (100.0, 161.0, 100.1, "fail"),
        (100.0, 39.0, 100.1, "fail"),
    ],
)
def test_clocks_apart(before: float, there: float, after: float, verdict: str) -> None:
    assert verdicts(clocks.judge("clock", "postgres", before, there, after)) == [verdict]


def partition(number: int = 0, *, leader: int = 1, isr: tuple[int, ...] = (1, 2, 3), replicas: int = 3) -> Partition:
    return Partition(number, leader, tuple(range(1, replicas + 1)), isr)


WHOLE = [partition(number) for number in range(6)]


@pytest.mark.parametrize(
    ("partitions", "in_sync", "brokers", "expected"),
    [
        (WHOLE, 2, 3, [("ok", "6 partitions, RF 3, min ISR 2")]),
        ([partition(number, isr=(1,), replicas=1) for number in range(6)], 1, 1, [("ok", "RF 1, min ISR 1")]),
        ([partition(0, leader=-1, isr=()), *WHOLE[1:]], 2, 2, [("fail", "partitions [0] have no leader")]),
        ([*WHOLE[:5], partition(5, isr=(1,))], 2, 3, [("fail", "partitions [5] have less than 2 replicas in sync")]),
        ([*WHOLE[:5], partition(5, isr=(1, 2))], 2, 3, [("warn", "partitions [5] have replicas that are not in sync")]),
        (WHOLE[:1], 2, 3, [("warn", "t has 1 partition, not 6")]),
        ([partition(number) for number in range(8)], 2, 3, [("warn", "t has 8 partitions, not 6")]),
        (WHOLE, 1, 3, [("warn", "min.insync.replicas is 1")]),
        (
            [partition(number, isr=(1,), replicas=1) for number in range(6)],
            2,
            3,
            [("fail", "less than 2 replicas in sync"), ("warn", "t is on 1 broker, and could be on 3")],
        ),
    ],
)
def test_a_topic(partitions: list[Partition], in_sync: int, brokers: int, expected: list[tuple[str, str]]) -> None:
    findings = list(kafka.judge_topic("topic", "t", partitions, in_sync, brokers=brokers))
    assert verdicts(*findings) == [verdict for verdict, _ in expected]
    assert all(said in finding.found for finding, (_, said) in zip(findings, expected, strict=True))
    assert all(finding.mend for finding in findings if finding.verdict is not Verdict.OK)
    assert not any("recreate" in finding.mend for finding in findings), "nothing that deletes records is advised"


def test_a_broker_that_does_not_listen() -> None:
    finding = kafka.judge_brokers(["h:1", "h:2"], ["h:3"])
    assert finding.verdict is Verdict.WARN
    assert "h:3 can't be connected to" in finding.found
    assert verdicts(kafka.judge_brokers(["h:1"], [])) == ["ok"]
    away = Unreached(2, "kafka-2:9092", "can't be resolved from here")
    finding = kafka.judge_brokers(["h:1", "kafka-2:9092"], [], [away])
    assert finding.verdict is Verdict.FAIL
    assert finding.found == "broker 2 is advertised as kafka-2:9092, which can't be resolved from here"
    assert "advertised.listeners" in finding.mend


def test_a_group_that_nobody_is_in() -> None:
    finding = kafka.judge_group(GroupView("inventory", "Empty", "", (), ()), "inventory")
    assert finding.verdict is Verdict.WARN
    assert "brewctl start inventory" in finding.mend
    member = GroupMember("inventory-1", (0, 1), "127.0.0.1")
    assert verdicts(kafka.judge_group(GroupView("inventory", "Stable", "roundrobin", (member,), ()), "inventory")) == [
        "ok"
    ]


@pytest.mark.parametrize(
    ("committed", "says"),
    [
        (5, "partition 3: its records 5 to 24 were removed before it read them"),
        (31, "partition 3: it ends at 30, and 31 was committed: it was truncated, or made anew"),
    ],
)
def test_a_group_whose_offset_is_gone(committed: int, says: str) -> None:
    member = GroupMember("inventory-1", (3,), "127.0.0.1")
    fine, lost = (GroupProgress(number, "inventory-1", at, 25, 30) for number, at in ((2, 25), (3, committed)))
    finding = kafka.judge_group(GroupView("inventory", "Stable", "roundrobin", (member,), (fine, lost)), "inventory")
    assert (finding.verdict, finding.found) == (Verdict.FAIL, says)
    assert "`brewctl outbox republish --missing`" in finding.mend


def test_rows_that_a_group_never_gets() -> None:
    found = Summary()
    missing = [Missing(row_id, "inventory", 0, row_id, why) for row_id, why in ((1, "removed"), (2, "passed"))]
    found.add([*missing, Missing(2, "notifications", 0, 2, "passed")])
    assert found.rows == 2
    first, second, third = records.judge(found, complete=False)
    assert (first.check, first.verdict) == ("records-inventory", Verdict.FAIL)
    assert first.found == "2 published rows never came to it, and never will (1 passed, 1 removed)"
    assert second.found == "1 published row never came to it, and never will (1 passed)"
    assert third.verdict is Verdict.WARN
    assert verdicts(*records.judge(Summary(), complete=True)) == ["ok"]


def test_parked_events_are_named_with_the_command_that_shows_them() -> None:
    assert verdicts(*postgres.parked([])) == ["ok"]
    first, _ = postgres.parked([("inventory", 3, 1), ("loyalty", 1, 1)])
    assert (first.verdict, first.found) == (
        Verdict.WARN,
        "inventory has parked 3 events of 1 key, whose effect failed",
    )
    assert "brewctl dlq list --group inventory" in first.mend
