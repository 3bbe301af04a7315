"""order-service: takes orders over gRPC, and publishes their events in the background.

    client ──Create──► admission ──► door ──message──► writer ──one commit: orders + outbox──► PostgreSQL
              ▲            │                              │                                     ▲   ▲
              └─ refused ──┘                              └── notify ──► publisher ─fetch, mark─┘   │
                           └── away? ──── watch ──looks─────────────────────│───────────────────────┘
                                                                            └──records──► Kafka

A call never talks to Kafka, so a Kafka outage does not slow Create down. Nor does a call wait for a database that is
away. On a stop, new calls are refused and those in hand finished; then the publisher sends the rows they have written.
With `--no-publisher` the rows are left to `brewctl publish`.

Read a Create's way in this order: `server` (what stands before the port), `door` and `call` (how its message comes in),
`admission` (whether there is room), `service` (what it does), and `delivery.orders.group_commit` (how it is written).
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

from brewctl import affinity, log
from brewctl.config import Settings
from brewctl.delivery import database, presence
from brewctl.delivery.broker import require_topic
from brewctl.delivery.database import rights
from brewctl.delivery.database.availability import Availability
from brewctl.delivery.orders.group_commit import GroupCommit
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.schema import readiness, registration, setup, versions
from brewctl.errors import UnreachableError
from brewctl.lifecycle import run_together
from brewctl.probes.health import Health, Readiness
from brewctl.roles.listening import Security
from brewctl.roles.order import assumed  # noqa: F401 - before what uses those names
from brewctl.roles.order.admission import Admission
from brewctl.roles.order.cancelling import Cancelling
from brewctl.roles.order.server import OPEN, Guard, OrderServer
from brewctl.roles.order.service import OrderService

logger = log.get(__name__)

_PLAINTEXT = Security()


def run(
    settings: Settings,
    stop: threading.Event,
    *,
    node: str,
    host: str,
    port: int,
    security: Security = _PLAINTEXT,
    share_port: bool = False,
    publishes: bool = True,
    ready: Callable[[], bool] = lambda: True,
    health: Health | None = None,
) -> None:
    """Serve until `stop` is set. Port 0 takes a free one; with `share_port` other processes may listen on it too.

    `ready` is called when only the port is left to open, and may wait: True opens it, False ends without having served.
    Without `publishes` the outbox rows are left to other nodes, and Kafka is not needed. `health` gets checks.

    Raises UsageError for files of `security` that can't be used, UnreachableError without PostgreSQL, BrewError for a
    taken port, a missing table, right or topic.
    """
    limits = settings.limits
    guard, looks = _guard(security)
    tables = registration.story_tables(settings)
    open_pool = functools.partial(database.open_pool, settings, name=node, ready=setup.required(settings, tables))
    open_patient = functools.partial(open_pool, statement_s=limits.create_s, lock_s=limits.create_lock_s)
    with (
        open_pool(size=limits.reading_threads, statement_s=limits.create_s) as reading,
        open_pool(size=1, statement_s=limits.create_batch_s, lock_s=limits.create_lock_s) as writing,
        open_patient(size=limits.alone_threads) as alone,
        open_patient(size=limits.cancelling_threads) as cancels,
        contextlib.ExitStack() as own,
    ):
        pools = [reading, writing, alone, cancels]
        publisher = None
        if publishes:
            pools.append(own.enter_context(open_pool(size=1, by_index=True)))
            _look_at_kafka(settings)
            publisher = Publisher(settings, pools[-1], node=node)
        with database.explained(settings), reading.connection() as connection:
            needed = ["replica", "order", *(["publisher"] if publishes else [])]
            rights.require(connection, f"an order-service {'that publishes' if publishes else 'alone'}", needed)
            versions.tell_of_newer(connection)
        notify = publisher.notify if publisher else _nobody
        writer = GroupCommit(settings, writing, alone, notify=notify)
        cancelling = Cancelling(settings, cancels, notify=notify)
        availability = Availability(settings, pools, name=node)
        admission = Admission(limits, availability, stop)
        service = OrderService(
            settings, admission, reading=reading, availability=availability, writer=writer, cancelling=cancelling
        )
        own.callback(service.shutdown)
        if not ready():
            return
        server = OrderServer(settings, service, admission, host=host, port=port, share_port=share_port, guard=guard)
        availability.on_change = server.tell_health
        log.say(node, f"order-service listening on {server.address}")
        drained = threading.Event()

        def serve() -> None:
            stop.wait()
            server.drain(limits.drain_s / 2)
            drained.set()
            notify()

        def findings() -> Iterator[Readiness]:
            # The role stays ready: the outbox takes the orders.
            if publisher and publisher.trouble:
                yield Readiness(ready=True, text=f"orders are taken, and their events wait: {publisher.trouble}")

        check = own.enter_context(contextlib.closing(readiness.DatabaseCheck(settings, node=node, tables=tables)))
        if health:
            health.up(check, findings)
        work = publisher.work if publisher else presence.Work
        replica = presence.Replica(node, "order", server.address, publishes=publishes)
        with presence.kept(settings, replica, work), affinity.on_one_core():
            run_together(
                {
                    "server": serve,
                    "writer": lambda: writer.run(drained),
                    **({"publisher": lambda: publisher.run(drained)} if publisher else {}),
                    "watch": lambda: availability.run(drained),
                    **({"files": lambda: _look_at_files(looks, drained, limits.files_look_s)} if looks else {}),
                },
                stop,
                drain_timeout_s=limits.drain_s,
            )
        log.say(node, "order-service stopped.")


def _nobody() -> None:
    """Ignore a commit: other nodes publish, and look for rows by themselves."""


def _guard(security: Security) -> tuple[Guard, list[Callable[[], None]]]:
    """Return what stands before the port, and the functions that read its files again when they change."""
    if not security.has_files:
        return OPEN, []
    # A server without them needs neither module.
    from brewctl.roles.order.tls import Certificates  # noqa: PLC0415
    from brewctl.roles.order.tokens import TokenCheck, Tokens  # noqa: PLC0415

    certificates = Certificates(security) if security.encrypts else None
    tokens = Tokens(security.tokens) if security.tokens is not None else None
    guard = Guard(
        certificates.credentials() if certificates else None,
        [TokenCheck(tokens)] if tokens else [],
    )
    return guard, [each.look for each in (certificates, tokens) if each]


def _look_at_files(looks: list[Callable[[], None]], stop: threading.Event, every_s: float) -> None:
    while True:
        for look in looks:
            look()
        if stop.wait(every_s):
            return


def _look_at_kafka(settings: Settings) -> None:
    try:
        require_topic(settings)
    except UnreachableError as error:
        # Orders are taken without Kafka, so a replica may start while Kafka is away.
        logger.warning("kafka_unreachable", reason=error.message, hint=error.hint)
