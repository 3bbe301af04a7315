"""Whether two deployments share a topic or a group, and whether two replicas share a name.

Consumers deduplicate by outbox id. If two databases publish into one topic, their events have the same ids, and
consumers skip the second event of each id. If nodes of two databases join one group, the group's partitions are split
between them, so that an event has its effect in only one of the databases.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database, events
from brewctl.delivery.broker import Record, open_admin, open_reader
from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.errors import BrewError
from brewctl.overview import consumer_groups
from brewctl.overview.consumer_groups import GroupView
from brewctl.overview.replicas import SILENT_S
from brewctl.sql import doctor_queries

_CHECK = "deployment"
# How many of each partition's newest records are read, and for how long at most.
_NEWEST = 100
_READ_S = 4.0
_STORY = {name.encode(): decoder for name, decoder in events.DECODERS.items()}
_APART = "stop one of them, or give it a topic and brokers of its own: BREW_TOPIC, BREW_KAFKA_BROKERS"


def check(settings: Settings) -> Iterator[Finding]:
    """Compare PostgreSQL with Kafka. Yields nothing where one of them does not answer: its own check reports that."""
    hasty = replace(settings, limits=replace(settings.limits, kafka_request_s=_READ_S))
    try:
        with database.connect(settings, name="brewctl doctor") as connection:
            problems = [
                *_fought(connection),
                *_foreign_records(hasty, connection),
                *_foreign_members(hasty, connection),
            ]
    except (BrewError, psycopg.Error):
        return
    yield from problems or [ok(_CHECK, "nodes, members and the newest records are all of this database")]


def _fought(connection: Connection) -> Iterator[Finding]:
    for name, host, pid, rival in connection.execute(doctor_queries["fought_nodes"], {"silent_s": SILENT_S}):
        found = f"two nodes are called {name}: pid {pid} on {host}, and {rival}"
        yield warn(_CHECK, found, mend="stop one of them, and start it with another --node")


def _foreign_records(settings: Settings, connection: Connection) -> Iterator[Finding]:
    (since_ms,) = connection.execute(doctor_queries["first_event"]).fetchone() or (None,)
    if since_ms is None:  # an empty outbox can't tell a foreign record from an old one of its own
        return
    seen, newest = 0, []
    with open_reader(settings) as reader:
        bounds = reader.bounds(settings.topic)
        ranges = {partition: (max(first, end - _NEWEST), end) for partition, (first, end) in bounds.items()}
        for records in reader.read(settings.topic, ranges):
            seen += len(records)
            # A record that is older than the outbox's first row was published before the tables were emptied.
            newest += [record for record in records if record.timestamp_ms > since_ms]
    if foreign := _unknown(connection, newest):
        yield _judged(foreign, seen, settings.topic)


def _unknown(connection: Connection, records: Sequence[Record]) -> list[Record]:
    """Return the events that have no outbox row. Our own events have one: it is committed before they are published."""
    known = [(record, outbox_id) for record in records if (outbox_id := _outbox_id(record))]
    asked = {
        "ids": [outbox_id for _, outbox_id in known],
        "keys": [(record.key or b"").decode(errors="replace").replace("\0", "") for record, _ in known],
    }
    return [known[place - 1][0] for (place,) in connection.execute(doctor_queries["unknown_events"], asked)]


def _outbox_id(record: Record) -> int | None:
    """Return an event's outbox id; None where no consumer would take the record."""
    try:
        event = events.read(record.key, record.value, record.headers, decoders=_STORY)
    except events.UnreadableError:
        return None
    return event.outbox_id if event else None


def _judged(foreign: Sequence[Record], seen: int, topic: str) -> Finding:
    nodes = sorted({dict(each.headers).get("publisher-node", b"").decode(errors="replace")[:40] for each in foreign})
    several = "records" if len(foreign) > 1 else "record"
    found = (
        f"{len(foreign)} {several} of the newest {seen} in {topic}, by {', '.join(nodes[:3])}, are not in this outbox:"
        " another database's orders go there too, and their ids collide; or a restore or a failover lost their rows"
    )
    return fail(_CHECK, found, mend=_APART)


def _foreign_members(settings: Settings, connection: Connection) -> Iterator[Finding]:
    with open_admin(settings) as admin:
        groups = consumer_groups.groups(admin, settings)
    # Nodes are read after the groups: a node writes its row before it joins its group.
    names = {str(name) for (name,) in connection.execute(doctor_queries["nodes_there"])}
    yield from strangers(groups, names)


def strangers(groups: Sequence[GroupView], names: Collection[str]) -> Iterator[Finding]:
    """Warn of group members that are not nodes of this database."""
    for group in groups:
        if foreign := [member for member in group.members if member.client_id not in names]:
            who = ", ".join(f"{member.client_id} at {member.host}" for member in foreign)
            found = f"{who} reads for group {group.name}, and is no node of this database: our nodes miss those records"
            yield warn(_CHECK, found, mend=_APART)
