"""Faults of processes, servers and the network: each has a beginning and an end."""

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
    """One thing that goes wrong. `end` also runs where the scenario is interrupted, and may run twice."""

    label: str
    begin: StageAction
    end: StageAction = _nothing
    nodes: tuple[str, ...] = ()  # that can't work meanwhile


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
                wait(f"{name} at its UPDATE", is_held)
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
            require_brokers(stage, len(names))
        for name in names:
            stage.servers.end(name)

    return Fault(f"kill -9 {', '.join(names)}", begin, restore)


def crash_postgres() -> Fault:
    """Stop PostgreSQL as `immediate` does: no checkpoint, crash recovery at its start."""
    return Fault("postgres stops at once", lambda stage: stage.servers.end("postgres", signal.SIGQUIT), restore)


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
    """Raise SkippedError where the sandbox has too few brokers to lose so many."""
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


def wait(what: str, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Raises BrewError where it takes longer than 30 s."""
    try:
        wait_until(what, condition, timeout_s=30)
    except TimeoutError as error:
        raise BrewError(str(error)) from None
