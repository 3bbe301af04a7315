"""Wait until no event is on its way."""

import contextlib

from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.broker import open_admin, open_reader
from brewctl.delivery.schema import homes, registration
from brewctl.lifecycle import wait_until
from brewctl.sql import verify_queries

_EVERY_S = 0.5


def settle(settings: Settings, *, timeout_s: float) -> str:
    """Wait until all rows are published, each group has committed the topic's end, and no event waits for a handler.

    Rows that were set aside are not waited for. Waits about `timeout_s` seconds at most; returns in words what was
    still on its way then, "" where nothing was.
    Raises UnreachableError, and BrewError where a table or a topic is missing.
    """
    moving: list[str] = []
    groups = {each.group: registry.kafka_group(settings, each) for each in registry.configured(settings)}
    with (
        open_admin(settings) as admin,
        open_reader(settings) as reader,
        database.connect(settings) as connection,
        contextlib.ExitStack() as stack,
    ):
        registration.require_story(settings, connection)
        laned = [
            (stack.enter_context(homes.connect(home, connection, name="verify")), groups_here)
            for home in homes.of(settings)
            if (groups_here := [each.group for each in home.downstreams if each.lanes])
        ]

        def settled() -> bool:
            (rows,) = connection.execute(verify_queries["on_the_way"]).fetchone() or (0,)
            bounds = reader.bounds(settings.topic)
            lag = {}
            for group, kafka_group in groups.items():
                offsets = admin.committed(kafka_group, settings.topic)
                lag[group] = sum(max(0, end - max(start, offsets.get(at, 0))) for at, (start, end) in bounds.items())
            moving[:] = [f"{rows} rows to publish"] * bool(rows)
            moving.extend(f"{group} lags by {records}" for group, records in lag.items() if records)
            for there, groups_here in laned:
                waiting = there.execute(verify_queries["waiting_for_lanes"], {"groups": groups_here})
                moving.extend(f"{count} of {group} wait for their handler" for group, count in waiting)
            return not moving

        try:
            wait_until("a quiet chain", settled, timeout_s=timeout_s, every_s=_EVERY_S)
        except TimeoutError:
            return ", ".join(moving)
    return ""
