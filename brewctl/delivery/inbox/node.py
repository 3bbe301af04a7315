"""Runs one node of a downstream: its `Consumption`, its lanes if it has some, its presence row and its health.

`roles/consumer.py` starts it.
"""

import contextlib
import threading
from collections.abc import Collection

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import broker, database, presence, registry
from brewctl.delivery.database import rights
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox import traced_inbox
from brewctl.delivery.inbox.consumption import Consumption
from brewctl.delivery.inbox.lanes import lanes_of
from brewctl.delivery.inbox.waiting_events import note_lanes, require_none_waiting
from brewctl.delivery.schema import readiness, setup, versions
from brewctl.lifecycle import run_together
from brewctl.probes.health import Health


def consume(
    settings: Settings,
    downstream: Downstream,
    stop: threading.Event,
    *,
    node: str,
    name: str = "",
    own: Settings | None = None,
    tables: Collection[str] | None = None,
    needs: Collection[str] = (),
    health: Health | None = None,
) -> None:
    """Run a downstream until `stop` is set, then print its counters.

    `name`: the MODULE:NAME under which it is registered. `own`: its database, if that is not the story's. `tables`:
    those that must be there; default: all. `needs`: the sections of grants.sql whose rights it must have there.
    `health` gets its checks.

    Raises UnreachableError where a server is away at the start, BrewError where a table or a topic is missing, or
    where the open transaction was not finished in time after a stop: it is rolled back then.
    """
    own = own or settings
    broker.require_topic(settings)
    with (
        database.open_pool(own, name=node, size=1, ready=setup.required(own, tables)) as pool,
        database.explained(own),
        lanes_of(settings, own, downstream, node=node, tables=tables) as lanes,
    ):
        with pool.connection() as connection:
            rights.require(connection, f"downstream {downstream.group}", needs)
            versions.tell_of_newer(connection)
            if not downstream.lanes:
                require_none_waiting(connection, downstream.group)
            if name:
                note_lanes(connection, downstream, name)
        inbox = traced_inbox.opened(settings, pool, downstream, node=node)
        consumption = Consumption(settings, inbox, group=registry.kafka_group(settings, downstream), node=node)
        replica = presence.Replica(node, downstream.group)
        check = readiness.DatabaseCheck(own, node=node, tables=tables)
        actors = {"consumer": lambda: consumption.run(stop)}
        work, findings = inbox.work, [consumption.findings]
        if lanes:
            inbox.on_taken = lanes.wake
            actors["lanes"] = lambda: lanes.run(stop)
            work, findings = lambda: lanes.work(inbox.work()), [*findings, lanes.findings]
        if health:
            health.up(check, *findings)
        try:
            with presence.kept(settings, replica, work, inbox=own), contextlib.closing(check):
                run_together(actors, stop, drain_timeout_s=settings.limits.drain_s)
        finally:
            done = work()
            counters = f"processed={done.processed} {downstream.verb}={done.effects} skipped={done.skipped}"
            log.say(node, f"{downstream.name} stopped. {counters}")
