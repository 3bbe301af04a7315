"""A Kafka node's folder: its configuration, and its storage as `kafka-storage format` creates it.

A node's working directory is its folder, and its configuration has relative paths only. The folder's own path may have
characters that have a meaning in `log.dirs` (a comma), in a properties file or in a class path (a colon).
"""

import base64
import shutil
import uuid
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from brewctl.sandbox import secured

# The name of a link in each node's folder, to the cache folder.
_SUPPLIES = "supplies"


def new_id() -> str:
    """Return a random id as Kafka writes them: 22 characters of base64, not beginning with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return text


def command(java: Sequence[str]) -> list[str]:
    """Return the command that runs a configured node in its folder. `java`: the command up to the main class."""
    logging = ["-Dkafka.logs.dir=logs", "-Dlog4j2.configurationFile=log4j2.xml"]
    return [java[0], *logging, *java[1:], "kafka.Kafka", "server.properties"]


def format_command(java: Sequence[str], folder: Path, arguments: str) -> list[str]:
    """Return the command that formats a configured node's storage, to be run in the node's folder.

    Further `arguments`, one a line, go into a file, as every user can read a process's command line.
    """
    command = [*java, "kafka.tools.StorageTool", "format", "-t", new_id(), "-c", "server.properties"]
    if arguments:
        secured.write(folder / "arguments", arguments.encode())
        command.append("@arguments")
    return command


def supply(folder: Path, cache: Path) -> None:
    """Link the cache folder, with the jars and the AOT cache, into a node's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / _SUPPLIES
    if not link.is_symlink() or link.readlink() != cache:
        link.unlink(missing_ok=True)
        link.symlink_to(cache)


def supplied(cache: Path, file: Path) -> str:
    """Return the path of a file in the cache, relative to a node's folder."""
    return f"{_SUPPLIES}/{file.relative_to(cache)}"


def format_storage(folder: Path, cluster_id: str, node_id: int, checkpoint: Path) -> None:
    """Create a node's storage, unless it exists. `checkpoint`: bootstrap.checkpoint, the same for each node."""
    data = folder / "data"
    if (data / "meta.properties").exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, data / "bootstrap.checkpoint")
    lines = ("version=1", f"cluster.id={cluster_id}", f"node.id={node_id}", f"directory.id={new_id()}")
    # meta.properties gets its name last: if a full disk or a kill interrupts this, the next start begins again.
    unfinished = data / ".meta.properties"
    unfinished.write_text("\n".join(lines) + "\n", "ascii")
    unfinished.replace(data / "meta.properties")


def configure(
    folder: Path,
    node_id: int,
    ports: Sequence[tuple[int, int]],
    detours: Sequence[tuple[int, int]] = (),
    internal: Sequence[int] = (),
) -> None:
    """Write a node's configuration. `ports`, `detours` and `internal` are those of all nodes, as in `State`.

    A node with `internal` ports is secured.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    properties = _properties(node_id, ports, detours, internal)
    lines = [f"{key}={value}\n" for key, value in properties.items()]
    (folder / "server.properties").write_text("".join(lines), "ascii")
    (folder / "log4j2.xml").write_text(resources.files(__package__).joinpath("log4j2.xml").read_text("utf-8"), "utf-8")


def _properties(
    node_id: int, ports: Sequence[tuple[int, int]], detours: Sequence[tuple[int, int]], internal: Sequence[int]
) -> dict[str, object]:
    client_port, controller_port = ports[node_id - 1]
    listeners = advertised = f"{'CLIENTS' if internal else 'PLAINTEXT'}://127.0.0.1:{client_port}"
    if detours:
        detour_port, advertised_port = detours[node_id - 1]
        listeners += f",DETOUR://127.0.0.1:{detour_port}"
        advertised += f",DETOUR://127.0.0.1:{advertised_port}"
    if internal:
        listeners += (between := f",INTERNAL://127.0.0.1:{internal[node_id - 1]}")
        advertised += between
    replicas = len(ports)
    in_sync = min(2, replicas)
    return {
        "process.roles": "broker,controller",
        "node.id": node_id,
        "controller.quorum.voters": ",".join(f"{number}@127.0.0.1:{port}" for number, (_, port) in enumerate(ports, 1)),
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": advertised,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,DETOUR:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": "data",
        "auto.create.topics.enable": "false",
        # `topic keep` takes effect within 30 s. Kafka's default is five minutes.
        "log.retention.check.interval.ms": 30_000,
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": 6,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": 3,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 3,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        # The first member of a group gets its partitions at once, without a wait for further members.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # Few threads and small buffers, for a small machine.
        "num.network.threads": 2,
        "num.io.threads": 2,
        "background.threads": 2,
        "num.recovery.threads.per.data.dir": 1,
        "log.cleaner.threads": 1,
        "log.cleaner.dedupe.buffer.size": 2 * 1024 * 1024,
        "log.cleaner.io.buffer.size": 64 * 1024,
        "log.index.size.max.bytes": 1024 * 1024,
        "offsets.load.buffer.size": 1024 * 1024,
        "transaction.state.log.load.buffer.size": 1024 * 1024,
        "group.coordinator.threads": 1,
        "share.coordinator.threads": 1,
        # All nodes are on loopback: elections, and the return of a killed broker, can be quicker than the defaults.
        "controller.quorum.election.timeout.ms": 500,
        "controller.quorum.election.backoff.max.ms": 200,
        "broker.heartbeat.interval.ms": 1000,
        "broker.session.timeout.ms": 6000,
        "metric.reporters": "",
        **(secured.kafka_properties(detours=bool(detours)) if internal else {}),
    }
