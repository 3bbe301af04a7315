"""Faults of processes, servers and the network."""

import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from brewctl.errors import BrewError
from brewctl.lab.chaos.stage import SkippedError, Stage
from brewctl.lab.network.proxy import Proxy
from brewctl.lab.play.cast import ORDER_NODES
from brewctl.lifecycle import wait_until

StageAction = Callable[[Stage], None]


def _nothing(_stage: Stage) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """A fault that can be injected. `end` runs after an interruption too, and may run twice."""

    label: str
    begin: StageAction
    end: StageAction = _nothing
    nodes: tuple[str, ...] = ()  # nodes that can't work meanwhile


# Processes


def kill_node(name: str) -> Fault:
    """Kill a replica; at the end, start another one of the same name."""
    return Fault(f"kill -9 {name}", lambda stage: stage.kill(name), lambda stage: _start(stage, name), (name,))


def terminate_node(name: str) -> Fault:
    """Let a replica drain; at the end, start another one of the same name."""
    return Fault(f"SIGTERM {name}", lambda stage: stage.terminate(name), lambda stage: _start(stage, name), (name,))


def pause_node(name: str) -> Fault:
    """Pause a replica. After its session timeout Kafka counts it as dead; then it resumes, as a zombie."""
    return Fault(
        f"SIGSTOP {name}",
        lambda stage: stage.signal(name, signal.SIGSTOP),
        lambda stage: stage.signal(name, signal.SIGCONT),
        (name,),
    )


def kill_between_acknowledgement_and_commit(name: str) -> Fault:
    """Kill an order replica after Kafka's acknowledgement of a batch, before the outbox rows are marked as published.

    A trigger blocks the replica's UPDATE until it is dead, so that the moment is exact.
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
            # A trigger's argument can't be a query parameter.
            connection.execute(
                psycopg.sql.SQL(
                    "CREATE TRIGGER chaos_gate BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION chaos_gate({})"
                ).format(psycopg.sql.Literal(name))
            )
            try:
                wait(f"{name} at its UPDATE", is_held)
                stage.kill(name)
            finally:
                # The dead replica's backend still waits for the lock, and must not complete the UPDATE.
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
    """Make a replica the publishing leader for half a second: only the leader publishes."""
    connection.execute(
        "INSERT INTO publishing (node_id, ends_at) VALUES (%s, clock_timestamp() + interval '0.5 s')"
        " ON CONFLICT (one) DO UPDATE SET (node_id, ends_at) = (excluded.node_id, excluded.ends_at)",
        (name,),
    )


def _start(stage: Stage, name: str) -> None:
    stage.start(name)


# Servers


def kill_brokers(*names: str) -> Fault:
    """Kill brokers at the same time; at the end, start them on their data."""

    def begin(stage: Stage) -> None:
        if len(names) > 1 or len(stage.servers.brokers) == 1:
            require_brokers(stage, len(names))
        for name in names:
            stage.servers.end(name)

    return Fault(f"kill -9 {', '.join(names)}", begin, restore)


def crash_postgres() -> Fault:
    """Stop PostgreSQL in immediate mode: no checkpoint, and crash recovery at the next start."""
    return Fault("postgres stops at once", lambda stage: stage.servers.end("postgres", signal.SIGQUIT), restore)


def terminate_backends(name: str) -> Fault:
    """Terminate every PostgreSQL session of a replica."""

    def begin(stage: Stage) -> None:
        # If another fault has stopped PostgreSQL, there is no session to end.
        with contextlib.suppress(psycopg.OperationalError), stage.postgres() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,)
            )

    return Fault(f"pg_terminate_backend {name}", begin)


def exhaust_connections() -> Fault:
    """Occupy all of PostgreSQL's connections: terminate the roles' sessions, and take what becomes free."""
    over, full = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def hog(stage: Stage) -> None:
        with contextlib.ExitStack() as held, stage.postgres() as control:
            while not over.is_set() and not stage.halt.is_set():
                try:
                    held.enter_context(stage.postgres())
                except psycopg.OperationalError:
                    # The roles' sessions are terminated. A role may reconnect before this thread does.
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
        wait("the last connection", full.is_set)

    def end(_stage: Stage) -> None:
        over.set()
        while threads:
            threads.pop().join()

    return Fault("too many clients", begin, end)


def restore(stage: Stage) -> None:
    """Start the servers that do not run."""
    stage.servers.restore()


def require_brokers(stage: Stage, count: int) -> None:
    """Raise SkippedError if the sandbox has fewer than `count` brokers, or fewer than three."""
    if len(stage.servers.brokers) < max(count, 3):
        raise SkippedError(f"needs a sandbox of 3 brokers, not {len(stage.servers.brokers)}")


# Network


def network(what: str, *targets: str) -> Callable[[Callable[[Proxy, Stage], None]], Fault]:
    """Return a function that makes a fault of an action on the proxies of `targets`. Its end heals them."""

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
    """Delay all bytes in both directions, by `seconds` ± half."""
    return network(f"latency {seconds * 1000:g} ms ± half", *targets)(
        lambda proxy, stage: proxy.latency(seconds, seconds / 2, chance=stage.chance)
    )


def narrow(bytes_per_s: int, *targets: str) -> Fault:
    """Limit the bandwidth."""
    return network(f"{bytes_per_s // 1024} KiB/s", *targets)(lambda proxy, _: proxy.bandwidth(bytes_per_s))


def swallow(*targets: str) -> Fault:
    """Accept connections and bytes, but forward and answer nothing."""
    return network("black hole", *targets)(lambda proxy, _: proxy.black_hole())


def reset(*targets: str) -> Fault:
    """Reset every open connection."""
    return network("reset", *targets)(lambda proxy, _: proxy.reset())


def cut_responses(*targets: str) -> Fault:
    """Deliver requests, but cut off every fifth answer: the caller does not learn that its commit succeeded."""
    return network("answers cut", *targets)(lambda proxy, _: proxy.cut_response(0, every=5))


def _proxies(stage: Stage, targets: tuple[str, ...]) -> list[Proxy]:
    names = {"kafka": tuple(stage.servers.brokers), "clients": ORDER_NODES}
    return [stage.proxies[name] for target in targets for name in names.get(target, (target,))]


def wait(what: str, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Raises BrewError after 30 s."""
    try:
        wait_until(what, condition, timeout_s=30)
    except TimeoutError as error:
        raise BrewError(str(error)) from None
