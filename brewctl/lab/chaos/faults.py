"""Faults, as production has them: each has a beginning and an end, and works on real processes and sockets."""

import contextlib
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from brewctl.delivery import events
from brewctl.delivery.broker import Producer, Record
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.lab.chaos.stage import SkippedError, Stage
from brewctl.lab.network.proxy import Proxy
from brewctl.lab.play.cast import ORDER_NODES
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import OrderCreated

Act = Callable[[Stage], None]


def _nothing(_stage: Stage) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. `end` also runs where the scenario is interrupted, and may run twice."""

    label: str
    begin: Act
    end: Act = _nothing
    nodes: tuple[str, ...] = ()  # whom it keeps from work


# Processes


def kill_node(name: str) -> Fault:
    """Kill a replica; its successor of the same name starts at the end."""
    return Fault(f"kill -9 {name}", lambda stage: stage.kill(name), lambda stage: _start(stage, name), (name,))


def terminate_node(name: str) -> Fault:
    """Let a replica drain; its successor starts at the end."""
    return Fault(f"SIGTERM {name}", lambda stage: stage.terminate(name), lambda stage: _start(stage, name), (name,))


def pause_node(name: str) -> Fault:
    """Let a replica stand still: to the others it is dead, until it wakes as a zombie."""
    return Fault(
        f"SIGSTOP {name}",
        lambda stage: stage.signal(name, signal.SIGSTOP),
        lambda stage: stage.signal(name, signal.SIGCONT),
        (name,),
    )


def kill_between_acknowledgement_and_commit(name: str) -> Fault:
    """Kill an order replica when Kafka has its batch and the outbox doesn't know yet.

    Nothing is left to chance: the database holds it at its UPDATE until it is dead.
    """

    def begin(stage: Stage) -> None:
        with stage.postgres() as connection:

            def is_held() -> bool:
                _let_lead(connection, name)
                return _held(connection, name)

            connection.execute("SELECT pg_advisory_lock(4242)")
            connection.execute(
                "CREATE OR REPLACE FUNCTION chaos_gate() RETURNS trigger LANGUAGE plpgsql AS $$"
                " BEGIN IF current_setting('application_name') = TG_ARGV[0]"
                " THEN PERFORM pg_advisory_xact_lock(4242); END IF; RETURN NEW; END $$"
            )
            # A trigger's argument can't be a parameter; names of nodes are letters, digits and dashes.
            connection.execute(
                psycopg.sql.SQL(
                    "CREATE TRIGGER chaos_gate BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION chaos_gate({})"
                ).format(psycopg.sql.Literal(name))
            )
            try:
                _wait(f"{name} at its UPDATE", is_held)
                stage.kill(name)
            finally:
                # The dead one's backend is still in the queue: it must not get through.
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,)
                )
                connection.execute("DROP TRIGGER chaos_gate ON outbox")
                connection.execute("DROP FUNCTION chaos_gate()")

    return Fault(f"kill -9 {name} before its commit", begin, lambda stage: _start(stage, name), (name,))


def _held(connection: psycopg.Connection[tuple[object, ...]], name: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'advisory'", (name,)
    )
    return found.fetchone() is not None


def _let_lead(connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """Let a replica publish for all, for a moment from now: where another one leads, it publishes nothing."""
    connection.execute(
        "INSERT INTO publishing (node_id, ends_at) VALUES (%s, clock_timestamp() + interval '0.5 s')"
        " ON CONFLICT (one) DO UPDATE SET (node_id, ends_at) = (excluded.node_id, excluded.ends_at)",
        (name,),
    )


def _start(stage: Stage, name: str) -> None:
    stage.start(name)


# Servers


def kill_brokers(*names: str) -> Fault:
    """Kill brokers at the same moment; they come back on their data."""

    def begin(stage: Stage) -> None:
        if len(names) > 1 or len(stage.servers.brokers) == 1:
            _require_brokers(stage, len(names))
        for name in names:
            stage.servers.end(name)

    return Fault(f"kill -9 {', '.join(names)}", begin, _restore)


def crash_postgres() -> Fault:
    """Stop PostgreSQL as `immediate` does: no checkpoint, crash recovery at its start."""
    return Fault("postgres stops at once", lambda stage: stage.servers.end("postgres", signal.SIGQUIT), _restore)


def terminate_backends(name: str) -> Fault:
    """End every session that a replica has with PostgreSQL."""

    def begin(stage: Stage) -> None:
        # A server that another fault has stopped has no session to end.
        with contextlib.suppress(psycopg.OperationalError), stage.postgres() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,)
            )

    return Fault(f"pg_terminate_backend {name}", begin)


def exhaust_connections() -> Fault:
    """Take every connection that PostgreSQL has, end the roles' own, and keep taking what comes free."""
    over, full = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def hog(stage: Stage) -> None:
        with contextlib.ExitStack() as held, stage.postgres() as control:
            while not over.is_set() and not stage.halt.is_set():
                try:
                    held.enter_context(stage.postgres())
                except psycopg.OperationalError:
                    # What the roles still have is ended, and whoever is quicker has it next.
                    control.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY(%s)",
                        (list(stage.cast.nodes),),
                    )
                    full.set()
                    over.wait(0.01)

    def begin(stage: Stage) -> None:
        over.clear()
        full.clear()
        threads.append(threading.Thread(target=hog, args=(stage,), name="hog"))
        threads[-1].start()
        _wait("the last connection", full.is_set)

    def end(_stage: Stage) -> None:
        over.set()
        while threads:
            threads.pop().join()

    return Fault("too many clients", begin, end)


def _restore(stage: Stage) -> None:
    stage.servers.restore()


def _require_brokers(stage: Stage, count: int) -> None:
    if len(stage.servers.brokers) < max(count, 3):
        raise SkippedError(f"needs a sandbox of 3 brokers, not {len(stage.servers.brokers)}")


# Network


def network(what: str, *targets: str) -> Callable[[Callable[[Proxy, Stage], None]], Fault]:
    """Make a fault of something done to the proxies before `targets`; its end heals them."""

    def make(act: Callable[[Proxy, Stage], None]) -> Fault:
        def begin(stage: Stage) -> None:
            for proxy in _proxies(stage, targets):
                act(proxy, stage)

        def end(stage: Stage) -> None:
            for proxy in _proxies(stage, targets):
                proxy.heal()

        return Fault(f"{what}: {', '.join(targets)}", begin, end)

    return make


def slow(seconds: float, *targets: str) -> Fault:
    """Delay everything, there and back."""
    return network(f"latency {seconds * 1000:g} ms ± half", *targets)(
        lambda proxy, stage: proxy.latency(seconds, seconds / 2, chance=stage.chance)
    )


def narrow(bytes_per_s: int, *targets: str) -> Fault:
    """Let little through."""
    return network(f"{bytes_per_s // 1024} KiB/s", *targets)(lambda proxy, _: proxy.bandwidth(bytes_per_s))


def swallow(*targets: str) -> Fault:
    """Take everything, answer nothing."""
    return network("black hole", *targets)(lambda proxy, _: proxy.black_hole())


def reset(*targets: str) -> Fault:
    """End every open connection with an RST."""
    return network("reset", *targets)(lambda proxy, _: proxy.reset())


def cut_responses(*targets: str) -> Fault:
    """Deliver requests and cut some of their answers: the caller never hears of a commit that happened."""
    return network("answers cut", *targets)(lambda proxy, _: proxy.cut_response(0, every=5))


def _proxies(stage: Stage, targets: tuple[str, ...]) -> list[Proxy]:
    names = {"kafka": tuple(stage.servers.brokers), "clients": ORDER_NODES}
    return [stage.proxies[name] for target in targets for name in names.get(target, (target,))]


# Records


def poison() -> Fault:
    """Put records into the topic that no consumer can read, and events of another type."""

    def begin(stage: Stage) -> None:
        producer = Producer(stage.settings, node="chaos")
        try:
            outcomes = producer.send([_poisoned(stage, kind) for kind in _POISONS for _ in range(3)], timeout_s=30)
        finally:
            producer.close()
        if failed := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
            raise BrewError(f"kafka did not take a poison record: {failed[0]}")

    return Fault("poison records", begin)


_POISONS = ("payload", "outbox-id", "content-type", "tombstone", "no headers", "event-type")


def _poisoned(stage: Stage, kind: str) -> Record:
    order = OrderCreated(order_id=str(uuid.UUID(int=stage.chance.getrandbits(128), version=4)), tenant_id="brew")
    key = events.aggregate_id(order.order_id)
    headers = dict(events.order_headers(2**62 + stage.chance.getrandbits(32), order, node="chaos"))
    value: bytes | None = order.SerializeToString()
    match kind:
        case "payload":
            value = b"\xff rubbish"
        case "tombstone":
            value = None
        case "no headers":
            headers = {}
        case _:
            headers[kind] = {"outbox-id": b"-1", "content-type": b"text/plain"}.get(kind, b"order.paid")
    return Record(stage.settings.topic, key.encode(), value, list(headers.items()))


# The constraint that refuses effects: it is in the reason for which their events are parked.
REFUSING = "chaos_refuses"


def reject_effects(downstream: Downstream) -> Fault:
    """Let PostgreSQL refuse every 20th effect of a downstream; afterwards `dlq redrive` brings them back."""
    what = downstream.counter.removesuffix("s") or f"effect of {downstream.group}"

    def begin(stage: Stage) -> None:
        with stage.postgres(downstream) as connection:
            # Whatever tables its effects are in: a dedup row is part of each.
            connection.execute(
                sql.SQL(
                    "ALTER TABLE processed_events ADD CONSTRAINT {}"
                    " CHECK (consumer <> {} OR outbox_id % 20 <> 0) NOT VALID"
                ).format(sql.Identifier(REFUSING), downstream.group)
            )

    def redrive(stage: Stage) -> None:
        stage.brewctl("dlq", "redrive", "--group", downstream.group, "--reason", "postgres rejected")

    def end(stage: Stage) -> None:
        with stage.postgres(downstream) as connection:
            connection.execute(f"ALTER TABLE processed_events DROP CONSTRAINT IF EXISTS {REFUSING}")
        stage.while_waiting.append(lambda: redrive(stage))

    return Fault(f"every 20th {what} refused", begin, end)


# Disks

_DISK_BYTES = 64 * 1024 * 1024


def fill_postgres_disk() -> Fault:
    """Move the tables to a small disk, and fill it."""

    def begin(stage: Stage) -> None:
        disk = stage.servers.home / "chaos-disk"
        owner = (stage.servers.home / "postgres" / "data").stat()
        _mount(disk, f"size={_DISK_BYTES},mode=0700,uid={owner.st_uid},gid={owner.st_gid}")
        with stage.postgres() as connection:
            connection.execute(
                psycopg.sql.SQL("CREATE TABLESPACE chaos LOCATION {}").format(psycopg.sql.Literal(str(disk)))
            )
            _move_tables(connection, "chaos")
        _fill(disk)

    def end(stage: Stage) -> None:
        disk = stage.servers.home / "chaos-disk"
        if not disk.exists():
            return
        _ballast(disk).unlink(missing_ok=True)
        with stage.postgres() as connection:
            _move_tables(connection, "pg_default")
            connection.execute("DROP TABLESPACE IF EXISTS chaos")
        _unmount(disk)

    return Fault("postgres's disk full", begin, end)


def _move_tables(connection: psycopg.Connection[tuple[object, ...]], space: str) -> None:
    for table in ("orders", "outbox"):
        connection.execute(
            psycopg.sql.SQL("ALTER TABLE {} SET TABLESPACE {}").format(
                psycopg.sql.Identifier(table), psycopg.sql.Identifier(space)
            )
        )


def fill_broker_disk(name: str) -> Fault:
    """Let a broker's data lie on a small disk, and fill it: the broker ends itself."""

    def folder(stage: Stage) -> Path:
        return stage.servers.home / "kafka" / name.removeprefix("kafka-")

    def begin(stage: Stage) -> None:
        _require_brokers(stage, 3)
        data, kept = folder(stage) / "data", folder(stage) / "data.kept"
        stage.servers.end(name)
        data.rename(kept)
        try:
            _mount(data, f"size={_DISK_BYTES},mode=0755")
        except SkippedError:
            kept.rename(data)
            _restore(stage)
            raise
        _copy(kept, data)
        _restore(stage)
        _fill(data)
        _wait(f"the end of {name}", lambda: not stage.servers.runs(name))

    def end(stage: Stage) -> None:
        data, kept = folder(stage) / "data", folder(stage) / "data.kept"
        if not kept.exists():
            return
        stage.servers.end(name)
        _ballast(data).unlink(missing_ok=True)
        shutil.rmtree(kept)
        _copy(data, kept)
        _unmount(data)
        kept.rename(data)
        _restore(stage)

    return Fault(f"{name}'s disk full", begin, end)


def _mount(folder: Path, options: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    mount = shutil.which("mount")
    done = mount and subprocess.run(  # noqa: S603
        [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        folder.rmdir()
        why = " ".join(done.stderr.split()) if done else "no mount command"
        raise SkippedError(f"needs a small disk, which only root can mount ({why})")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], capture_output=True, check=True)  # noqa: S603, S607
    folder.rmdir()


def _ballast(folder: Path) -> Path:
    return folder / "ballast"


def _fill(folder: Path) -> None:
    with contextlib.suppress(OSError), _ballast(folder).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", f"{source}/.", str(target)], capture_output=True, check=True)  # noqa: S603, S607


def _wait(what: str, condition: Callable[[], bool]) -> None:
    try:
        wait_until(what, condition, timeout_s=30)
    except TimeoutError as error:
        raise BrewError(str(error)) from None
