"""All known processes: from the replicas' rows, the sandbox's state file, Kafka, and the process table."""

import socket
from collections.abc import Iterator, Mapping, Sequence

import psutil

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import Broker, Partition
from brewctl.lab.top.snapshot import Process
from brewctl.overview import NodeRow
from brewctl.sandbox import processes
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

_FORGOTTEN_S = 300.0  # an ended replica is shown this long after its last row
# A row has its start by PostgreSQL's clock, a process by the system's: they may differ a little.
_SAME_START_S = 5.0


def processes_of(
    settings: Settings,
    known: State | None,
    rows: Sequence[NodeRow],
    brokers: Sequence[Broker],
    partitions: Sequence[Partition],
    troubles: Mapping[str, str],
) -> Iterator[Process]:
    """Yield replicas, then brokers, then PostgreSQL. `known`: None if the servers are the user's own."""
    servers = known.servers if known else {}
    nodes = known.nodes if known else {}
    yield from _replicas(nodes, rows)
    names = {f"kafka-{number}": number for number, _ in enumerate(known.kafka_ports, start=1)} if known else {}
    alive = {broker.node_id: broker.address for broker in brokers}
    names |= {f"kafka-{number}": number for number in alive if number not in names.values()}
    for name, number in names.items():
        process = processes.find(servers[name]) if name in servers else None
        # If Kafka does not answer, its last answer stands for a sandbox's broker whose process runs.
        there = number in alive and (process is not None if name in servers else "kafka" not in troubles)
        yield Process(
            name,
            "kafka",
            _server_state(process, there=there, ours=name in servers),
            process.pid if process else None,
            ours=known is not None,
            place=alive.get(number, ""),
            leads=tuple(each.partition for each in partitions if each.leader == number) if there else (),
            in_sync=sum(number in each.isr for each in partitions) if there else 0,
            holds=sum(number in each.replicas for each in partitions),
        )
    process = processes.find(servers["postgres"]) if "postgres" in servers else None
    state = _server_state(process, there="postgres" not in troubles, ours="postgres" in servers)
    pid = process.pid if process else None
    yield Process(
        "postgres", "postgres", state, pid, ours=known is not None, place=database.place(settings.database_url)
    )


def _replicas(nodes: Mapping[str, Server], rows: Sequence[NodeRow]) -> Iterator[Process]:
    said = {row.name: row for row in rows if row.name in nodes or row.silent_s < _FORGOTTEN_S}
    for name in [*said, *(name for name in nodes if name not in said)]:
        row, server = said.get(name), nodes.get(name)
        if row and server and row.pid != server.pid and not row.there:
            row = None  # written by an earlier process of this name
        process = processes.find(server) if server else _found(row)
        pid = process.pid if process else row.pid if row else None
        role = server.role if server else row.role if row else ""
        here = server is not None or (row is not None and row.host == socket.gethostname())
        yield Process(name, role, _replica_state(row, process, here=here), pid, ours=server is not None, row=row)


def _found(row: NodeRow | None) -> psutil.Process | None:
    """Return the process of a replica on this machine that `brewctl start` did not start; else None."""
    if row is None or row.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(row.pid)
        same = row.there or abs(process.create_time() - row.started_s) < _SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _replica_state(row: NodeRow | None, process: psutil.Process | None, *, here: bool) -> str:
    if process:
        return "paused" if processes.is_paused(process) else "runs" if row else "starts"
    if row and row.stopped:
        return "stopped"
    if here:
        return "gone"
    return "runs" if row and row.there else "silent"


def _server_state(process: psutil.Process | None, *, there: bool, ours: bool) -> str:
    if ours and process is None:
        return "gone"
    if process and processes.is_paused(process):
        return "paused"
    return "runs" if there else "starts" if process else "silent"
