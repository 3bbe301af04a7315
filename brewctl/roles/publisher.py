"""publisher: sends the outbox's rows to Kafka, and does nothing else. Many replicas, no leader.

    PostgreSQL ──rows of any service──► this node ──records──► Kafka

For services that write their events with SQL alone, and for order-services that run with `--no-publisher`. No
commit notifies it: it polls the outbox, often while there are rows and less often while there are none. Rows wait while
their topic is missing or Kafka is away.
"""

import contextlib
import threading
from collections.abc import Iterator

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import broker, database, presence
from brewctl.delivery.database import rights
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.schema import readiness, registration, setup, versions
from brewctl.lifecycle import run_together
from brewctl.probes.health import Health, Readiness


def run(settings: Settings, stop: threading.Event, *, node: str, health: Health | None = None) -> None:
    """Publish until `stop` is set; `health` hears how it is.

    Raises UnreachableError without PostgreSQL, BrewError for a missing table or right, UsageError for a certificate or
    password of Kafka's that can't be read.
    """
    broker.require_files(settings)  # Kafka itself may be away
    tables = registration.story_tables(settings)
    with database.open_pool(settings, name=node, size=1, by_index=True, ready=setup.required(settings, tables)) as pool:
        with database.explained(settings), pool.connection() as connection:
            rights.require(connection, "a publisher", ["replica", "publisher"])
            versions.tell_of_newer(connection)
        publisher = Publisher(settings, pool, node=node, polls=True)
        log.say(node, "publisher started.")

        def wake() -> None:
            stop.wait()
            publisher.notify()

        def findings() -> Iterator[Readiness]:
            yield Readiness(
                ready=not publisher.trouble, text=publisher.trouble or "the last try to publish did not fail"
            )

        check = readiness.DatabaseCheck(settings, node=node, tables=tables)
        if health:
            health.up(check, findings)
        replica = presence.Replica(node, "publisher", publishes=True)
        with presence.kept(settings, replica, publisher.work), contextlib.closing(check):
            run_together(
                {"publisher": lambda: publisher.run(stop), "stop": wake}, stop, drain_timeout_s=settings.limits.drain_s
            )
        work = publisher.work()
        log.say(node, f"publisher stopped. published={work.effects} set_aside={work.dead}")
