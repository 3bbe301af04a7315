"""A real Prometheus with the shipped rules, faster: real faults fire each alert, and it clears when they are over."""

import contextlib
import dataclasses
import random
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from brewctl.config import Settings, resolve
from brewctl.delivery import database, registry
from brewctl.delivery.broker import open_admin
from brewctl.delivery.schema import setup
from brewctl.delivery.topics import topics
from brewctl.lab.chaos import faults, ledger, record_faults
from brewctl.lab.chaos.faults import Fault
from brewctl.lab.chaos.stage import Stage
from brewctl.lab.load.load import Load
from brewctl.lab.play.cast import ORDER_NODES, STORY
from brewctl.lab.play.servers import Servers
from brewctl.lifecycle import wait_until
from brewctl.roles import inventory
from brewctl.sandbox.processes import free_port
from tests.acceptance.conftest import environment
from tests.conftest import begin
from tests.integration.kafka_tools import remove_records
from tests.prometheus import RULES, Prometheus, program, scraping

SESSION_S = 6.0
_DEADLINE_S = 60.0
# An outage of so many seconds makes effects late, beyond the objective's 5 s, that are a good part of half a minute's.
_LATE_S = 15


class Play:
    """The story with its exporter and a Prometheus, under load."""

    def __init__(self, stage: Stage, prometheus: Prometheus, exporter: "Exporter") -> None:
        self.stage = stage
        self.prometheus = prometheus
        self.exporter = exporter
        self.fired: set[str] = set()

    @contextlib.contextmanager
    def during(self, *happening: Fault) -> Iterator[None]:
        """Let these faults last while the block runs."""
        with contextlib.ExitStack() as ends:
            for fault in happening:
                ends.callback(fault.end, self.stage)
                fault.begin(self.stage)
            yield

    def fires(self, name: str, **labels: str) -> None:
        self._wait(f"{name} {labels}", lambda: self.prometheus.firing(name, **labels))
        self.fired.add(name)

    def holds(self, expression: str) -> None:
        self._wait(expression, lambda: bool(self.prometheus.ask("query", query=expression)["result"]))

    def clears(self, *names: str) -> None:
        for name in names:
            self._wait(f"the end of {name}", lambda name=name: not self.prometheus.firing(name))  # type: ignore[misc]

    def all_clear(self) -> None:
        self._wait("no alert", lambda: not self.prometheus.alerts())

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            wait_until(what, condition, timeout_s=_DEADLINE_S)
        except TimeoutError as error:
            raise AssertionError(f"{error}; firing: {self.prometheus.alerts()}") from None


class Exporter:
    """`brewctl metrics`, to be killed and started again."""

    def __init__(self, env: dict[str, str]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._env = env
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = begin("metrics", "--http", self.address, env=self._env, stderr=subprocess.DEVNULL)

    def end(self, number: signal.Signals) -> int:
        assert self._process
        self._process.send_signal(number)
        self._process.communicate(timeout=30)
        return self._process.returncode


@pytest.fixture
def play(home: Path, tmp_path: Path) -> Iterator[Play]:
    program("prometheus")
    env = environment(home)
    settings = resolve({}, env, {})
    # A test before may have ended a consumer that could not leave its group.
    topics.await_empty_groups(settings, timeout_s=60)
    topics.create(settings, recreate=True)
    with database.connect(settings) as connection:
        setup.initialize(connection, reset=True)
        ledger.create(connection)  # what the stage's nodes keep beside their effects
    ports = {name: free_port() for name in STORY.nodes}
    commands = {name: (*words, "--http", f"127.0.0.1:{ports[name]}") for name, words in STORY.commands.items()}
    stage = Stage(
        settings,
        Servers(home),
        cast=dataclasses.replace(STORY, commands=commands),
        logs=tmp_path / "logs",
        network=True,
        session_s=SESSION_S,
        chance=random.Random(1),
        on_line=lambda _line: None,
    )
    exporter = Exporter(env)
    jobs = {"brew": [f"127.0.0.1:{port}" for port in ports.values()], "brew-whole": [exporter.address]}
    stop = threading.Event()
    with stage, contextlib.ExitStack() as ends:
        ends.callback(forget_ledger, settings)
        ends.callback(stage.servers.restore)
        stage.start_all()
        exporter.start()
        ends.callback(exporter.end, signal.SIGKILL)
        load = Load(stage.addresses, lambda _call: None, rate=20, concurrency=32, timeout_s=2)
        customers = threading.Thread(target=load.run, args=(stop,))
        customers.start()
        ends.callback(customers.join)
        ends.callback(stop.set)
        yield Play(stage, ends.enter_context(scraping(jobs, tmp_path)), exporter)


def forget_ledger(settings: Settings) -> None:
    with database.connect(settings) as connection:
        ledger.drop(connection)


def refused_rows() -> Fault:
    """Rows that are too large for Kafka, again and again; at the end they are deleted."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def insert(stage: Stage) -> None:
        with stage.postgres() as connection:
            payload = random.Random(1).randbytes(1_500_000)
            while not over.wait(0.3):
                connection.execute(
                    "SELECT outbox_add(%s, 'too-large-' || gen_random_uuid(), 'order.created', %s)",
                    (stage.settings.topic, payload),
                )

    def begin(stage: Stage) -> None:
        threads.append(threading.Thread(target=insert, args=(stage,)))
        threads[0].start()

    def end(stage: Stage) -> None:
        over.set()
        for thread in threads:
            thread.join()
        with stage.postgres() as connection:
            connection.execute("DELETE FROM outbox WHERE aggregate_id LIKE 'too-large-%'")

    return Fault("rows too large for kafka", begin, end)


def open_transaction() -> Fault:
    """A transaction that nobody ends."""
    held = contextlib.ExitStack()

    def begin(stage: Stage) -> None:
        connection = held.enter_context(psycopg.connect(stage.settings.database_url))
        connection.execute("SELECT 1")

    return Fault("an open transaction", begin, lambda _stage: held.close())


def table_away(name: str) -> Fault:
    """A table that is not there for a while."""

    def rename(old: str, new: str) -> Callable[[Stage], None]:
        def act(stage: Stage) -> None:
            with stage.postgres() as connection:
                connection.execute(f"ALTER TABLE IF EXISTS {old} RENAME TO {new}".encode())

        return act

    return Fault(f"no table {name}", rename(name, f"{name}_away"), rename(f"{name}_away", name))


def nobody_handles() -> Fault:
    """An event that was taken for lanes, and no node that has some."""

    def begin(stage: Stage) -> None:
        with stage.postgres() as connection:
            connection.execute(
                'INSERT INTO waiting_events (consumer, key, outbox_id, event_type, topic, "partition", "offset",'
                " written_ms, value, headers)"
                " VALUES ('notifications', 'k', 1, 'order.created', 't', 0, 0, 0, 'x', '[]')"
            )

    def end(stage: Stage) -> None:
        with stage.postgres() as connection:
            connection.execute("DELETE FROM waiting_events")

    return Fault("an event that waits for lanes", begin, end)


def partitions_are_full(stage: Stage) -> None:
    """The outbox comes to its third partition, and those ahead of it are gone: as if nobody had run retention."""
    with stage.postgres() as connection:
        connection.execute("ALTER TABLE outbox ALTER id RESTART WITH 2000001")
        for (name,) in connection.execute("SELECT name::text FROM partitions_of('outbox') WHERE lower >= 3000000"):
            connection.execute(f"DROP TABLE {name}".encode())


def retention(play: Play) -> str:
    """Run retention once, and return what it says."""
    done = play.stage.brewctl("db", "retention")
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout + done.stderr


def forget_what_is_read(settings: Settings) -> None:
    """Remove the records that all groups have read."""
    with open_admin(settings) as admin:
        read = [admin.committed(group, settings.topic) for group in registry.kafka_groups(settings)]
    remove_records(settings, {partition: min(each[partition] for each in read) for partition in read[0]})


def overtake(play: Play) -> None:
    """Fill partitions that nobody drops, and let the topic lose what groups have not read."""
    partitions_are_full(play.stage)
    play.fires("BrewPartitionsRunOut", table="outbox")
    play.fires("BrewRetentionNotRun")
    remove_records(play.stage.settings)
    play.fires("BrewGroupOvertaken", group="inventory")
    assert "overtaken" in retention(play)
    play.fires("BrewRetentionRefused")
    play.clears("BrewPartitionsRunOut")  # a run that is refused makes partitions all the same


def mend_retention(play: Play) -> None:
    """Bring the groups what they lost; then the full partitions may go."""
    assert play.stage.brewctl("outbox", "republish", "--missing", "--yes").returncode == 0
    wait_until("all to be processed", lambda: "still has records" in retention(play), timeout_s=_DEADLINE_S)
    play.fires("BrewRetentionHeldBack")

    def drops() -> bool:
        forget_what_is_read(play.stage.settings)
        return "dropped    outbox_p0, outbox_p1000000" in retention(play)

    wait_until("dropped partitions", drops, timeout_s=_DEADLINE_S)
    play.clears("BrewRetentionHeldBack", "BrewRetentionRefused", "BrewRetentionNotRun")


def test_each_alert_fires_by_its_fault_and_clears(play: Play) -> None:
    play.all_clear()

    with play.during(open_transaction(), nobody_handles()):
        with play.during(record_faults.poison(), record_faults.reject_effects(inventory.DOWNSTREAM), refused_rows()):
            play.fires("BrewDeadLettersOpen", group="inventory")
            play.fires("BrewEventsParked", consumer="inventory")
            play.fires("BrewConsumerRetries", consumer="inventory", reason="effect")
            play.fires("BrewRowsSetAside")
            play.fires("BrewPublishFails", reason="refused")
        with play.during(table_away("dead_letters_settled")):
            play.fires("BrewMetricLeftOut", question="dead_letters")
        play.fires("BrewTransactionOpenForLong", server="postgres")
        play.fires("BrewWaitingForLong", consumer="notifications")
    assert play.stage.brewctl("dlq", "drop", "--all", "--yes").returncode == 0
    play.stage.while_waiting.clear()
    redriven = play.stage.brewctl("dlq", "redrive", "--group", "inventory", "--reason", "postgres rejected")
    assert redriven.returncode == 0, redriven.stderr
    play.all_clear()

    with play.during(faults.swallow("kafka")):
        play.fires("BrewOutboxNotPublished")
        play.holds(f"brew_outbox_oldest_seconds > {_LATE_S}")
    # The consumers went on: what they count is seen to grow. That of one which starts with a backlog may not be.
    play.fires("BrewDeliveryLate", consumer="inventory")
    play.fires("BrewDeliveryLateForLong", consumer="inventory")
    play.clears("BrewOutboxNotPublished")

    with play.during(*(faults.kill_node(name) for name in STORY.peers)):
        play.fires("BrewTargetDown", job="brew")
        play.fires("BrewConsumersBehind", group="inventory")
        play.fires("BrewGroupWithoutMembers", group="inventory")
        overtake(play)
    play.holds('brew_inbox_overtaken_records_total{consumer="inventory"} > 0')  # they say so until they end
    with play.during(*(faults.kill_node(name) for name in STORY.peers)):
        play.clears("BrewGroupOvertaken")
        play.fires("BrewTargetDown", job="brew")  # so that its end below is that of these kills
    play.clears("BrewTargetDown", "BrewConsumersBehind", "BrewGroupWithoutMembers")
    mend_retention(play)

    with play.during(faults.crash_postgres()):
        play.fires("BrewServerAway", server="postgres")
        play.fires("BrewCallsFail")
    play.clears("BrewServerAway", "BrewCallsFail")

    play.exporter.end(signal.SIGKILL)
    play.fires("BrewExporterMissing")
    assert play.prometheus.firing("BrewTargetDown", job="brew-whole", instance=play.exporter.address)
    play.exporter.start()
    play.all_clear()
    assert play.exporter.end(signal.SIGTERM) == 0
    play.exporter.start()

    shipped = set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8")))
    assert play.fired == shipped
    assert all(play.stage.node(name).alive for name in (*ORDER_NODES, *STORY.peers))
