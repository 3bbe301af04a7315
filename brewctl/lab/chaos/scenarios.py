"""The scenarios of chaos. Each is a plan of faults that depends only on the seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brewctl.lab.chaos import disk_faults, faults, record_faults
from brewctl.lab.chaos.faults import Fault
from brewctl.lab.play.cast import ORDER_NODES, Cast


@dataclass(frozen=True)
class PlannedFault:
    """A fault that begins `at_s` seconds after the scenario's start, and lasts `for_s` seconds."""

    at_s: float
    for_s: float
    fault: Fault

    def __str__(self) -> str:
        return f"{self.at_s:5.1f} s  {self.fault.label}" + (f", for {self.for_s:g} s" if self.for_s else "")


@dataclass(frozen=True)
class Scenario:
    """A plan of faults. `network`: roles and clients connect through the lab's proxies."""

    name: str
    title: str
    # Called with the random source, the session timeout in seconds, and the cast.
    plan: Callable[[random.Random, float, Cast], Sequence[PlannedFault]]
    network: bool = False

    def title_for(self, cast: Cast) -> str:
        """Return the title, which may name the group that has two nodes."""
        group = cast.sharing.group
        return self.title.format(a_consumer=f"{'an' if group[0] in 'aeiou' else 'a'} {group}")


def chance(seed: int, name: str) -> random.Random:
    """Return a scenario's source of randomness: equal seeds give equal plans."""
    return random.Random(f"{seed}/{name}")  # noqa: S311 - repeatable on purpose


def _once(fault: Callable[[], Fault], for_s: float) -> Callable[[random.Random, float, Cast], Sequence[PlannedFault]]:
    return lambda _chance, _session_s, _cast: [PlannedFault(0, for_s, fault())]


def _kill_orders(chance: random.Random, _session_s: float, _cast: Cast) -> Sequence[PlannedFault]:
    return [
        PlannedFault(3.0 * turn + chance.random(), 1.0, faults.kill_node(ORDER_NODES[turn % 2])) for turn in range(4)
    ]


def _kill_consumer(chance: random.Random, session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    return [PlannedFault(0, session_s + 4, faults.kill_node(chance.choice(cast.peers)))]


def _kill_roles(chance: random.Random, _session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    steps, at_s = [], 0.0
    for role in (*cast.consumers, ORDER_NODES):
        for name in role:
            steps.append(PlannedFault(at_s, 1.0, faults.kill_node(name)))
            at_s += chance.uniform(2.0, 4.0)
    return steps


def _zombie(chance: random.Random, session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    return [PlannedFault(0, session_s + 3, faults.pause_node(chance.choice(cast.peers)))]


def _rolling_restart(chance: random.Random, _session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    nodes = [*cast.nodes, *cast.nodes]
    return [
        PlannedFault(2.5 * turn + chance.random(), 0.2, faults.terminate_node(name)) for turn, name in enumerate(nodes)
    ]


def _terminate_backends(chance: random.Random, _session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    return [PlannedFault(0.3 * turn, 0, faults.terminate_backends(chance.choice(cast.nodes))) for turn in range(40)]


def _slow(_chance: random.Random, _session_s: float, _cast: Cast) -> Sequence[PlannedFault]:
    return [
        PlannedFault(0, 8, faults.slow(0.02, "postgres")),
        PlannedFault(8, 8, faults.slow(0.1, "kafka")),
        PlannedFault(16, 8, faults.slow(0.05, "clients")),
    ]


def _black_hole(_chance: random.Random, session_s: float, _cast: Cast) -> Sequence[PlannedFault]:
    return [
        PlannedFault(0, 6, faults.swallow("postgres")),
        PlannedFault(14, session_s + 4, faults.swallow("kafka")),
        PlannedFault(session_s + 26, 4, faults.swallow("clients")),
    ]


def _reset(chance: random.Random, _session_s: float, _cast: Cast) -> Sequence[PlannedFault]:
    targets = ("postgres", "kafka", "clients")
    return [PlannedFault(0.7 * turn, 0, faults.reset(chance.choice(targets))) for turn in range(20)]


def _narrow(_chance: random.Random, _session_s: float, _cast: Cast) -> Sequence[PlannedFault]:
    return [
        PlannedFault(0, 8, faults.narrow(24 * 1024, "postgres")),
        PlannedFault(8, 8, faults.narrow(16 * 1024, "kafka")),
        PlannedFault(16, 8, faults.narrow(4 * 1024, "clients")),
    ]


def _cut(_chance: random.Random, _session_s: float, _cast: Cast) -> Sequence[PlannedFault]:
    return [
        PlannedFault(0, 8, faults.cut_responses("clients")),
        PlannedFault(10, 6, faults.cut_responses("postgres")),
        PlannedFault(18, 6, faults.cut_responses("kafka")),
    ]


def _poison(_chance: random.Random, _session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    return [
        PlannedFault(0, 0, record_faults.poison()),
        PlannedFault(2, 6, record_faults.reject_effects(cast.sharing)),
        PlannedFault(5, 0, record_faults.poison()),
    ]


def _mixed(chance: random.Random, session_s: float, cast: Cast) -> Sequence[PlannedFault]:
    """Plan fifteen faults of all kinds; some overlap, as when one fault causes another."""
    menu: list[Callable[[], tuple[float, Fault]]] = [
        lambda: (1.0, faults.kill_node(chance.choice(cast.nodes))),
        lambda: (0.2, faults.terminate_node(chance.choice(cast.nodes))),
        lambda: (session_s + 2, faults.pause_node(chance.choice(cast.peers))),
        lambda: (3.0, faults.kill_brokers(f"kafka-{chance.randint(1, 3)}")),
        lambda: (1.5, faults.crash_postgres()),
        lambda: (0.0, faults.terminate_backends(chance.choice(cast.nodes))),
        lambda: (2.0, faults.slow(0.03, chance.choice(("postgres", "kafka", "clients")))),
        lambda: (3.0, faults.swallow(chance.choice(("postgres", "kafka", "clients")))),
        lambda: (0.0, faults.reset(chance.choice(("postgres", "kafka", "clients")))),
        lambda: (3.0, faults.cut_responses(chance.choice(("postgres", "kafka", "clients")))),
        lambda: (0.0, record_faults.poison()),
    ]
    # Each kind once in random order, then four more.
    kinds = [*chance.sample(menu, len(menu)), *chance.choices(menu, k=4)]
    steps, at_s = [], 0.0
    for kind in kinds:
        for_s, fault = kind()
        steps.append(PlannedFault(round(at_s, 1), for_s, fault))
        at_s += chance.uniform(0.5, 5.0)
    return steps


SCENARIOS = (
    Scenario("kill-order", "kill -9 of order replicas, four times in turn", _kill_orders),
    Scenario(
        "kill-publisher",
        "kill -9 between Kafka's acknowledgement and the commit",
        lambda _c, _s, _cast: [
            PlannedFault(0, 1, faults.kill_between_acknowledgement_and_commit("order-1")),
            PlannedFault(5, 1, faults.kill_between_acknowledgement_and_commit("order-2")),
        ],
    ),
    Scenario("kill-consumer", "kill -9 of {a_consumer} replica, gone beyond its session", _kill_consumer),
    Scenario("kill-roles", "kill -9 of every replica, one after the other", _kill_roles),
    Scenario("zombie", "SIGSTOP of a consumer beyond its session, then SIGCONT", _zombie),
    Scenario("rolling-restart", "SIGTERM of every replica, again and again", _rolling_restart),
    Scenario("kill-broker", "kill -9 of one broker", _once(lambda: faults.kill_brokers("kafka-1"), 8)),
    Scenario(
        "kill-two-brokers",
        "kill -9 of two of three brokers: orders wait in the outbox",
        _once(lambda: faults.kill_brokers("kafka-2", "kafka-3"), 10),
    ),
    Scenario(
        "kill-all-brokers",
        "kill -9 of all brokers",
        _once(lambda: faults.kill_brokers("kafka-1", "kafka-2", "kafka-3"), 10),
    ),
    Scenario("crash-postgres", "immediate stop of PostgreSQL, and a restart", _once(faults.crash_postgres, 4)),
    Scenario("terminate-backends", "a stream of pg_terminate_backend", _terminate_backends),
    Scenario("exhaust-connections", "PostgreSQL has too many clients", _once(faults.exhaust_connections, 6)),
    Scenario("slow-network", "latency before PostgreSQL, Kafka and clients", _slow, network=True),
    Scenario("black-hole", "a network that takes everything and answers nothing", _black_hole, network=True),
    Scenario("reset-connections", "RST on every connection, again and again", _reset, network=True),
    Scenario("narrow-network", "little bandwidth", _narrow, network=True),
    Scenario("cut-responses", "answers cut off: clients retry calls that succeeded", _cut, network=True),
    Scenario("poison-records", "unreadable records, and effects refused, then redriven", _poison),
    Scenario("full-disk-postgres", "PostgreSQL's disk is full (needs root)", _once(disk_faults.fill_postgres_disk, 6)),
    Scenario(
        "full-disk-broker",
        "a broker's disk is full (needs root)",
        _once(lambda: disk_faults.fill_broker_disk("kafka-3"), 6),
    ),
    Scenario("mixed", "all of it at random, from the seed", _mixed, network=True),
)
