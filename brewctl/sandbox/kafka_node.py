"""A Kafka node's folder: what it is configured with, and its storage as `kafka-storage format` makes it.

A node works in its folder and is told relative names alone: `log.dirs` is a list with commas, a properties file and the
class path give other characters a meaning too, and the folder's own name may have any of them.
"""

import base64
import shutil
import uuid
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from brewctl.sandbox import secured

# In a node's folder: a link to the cache.
_SUPPLIES = "supplies"


def new_id() -> str:
    """Return a random id as Kafka writes them: 22 characters of base64, not beginning with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return text


def command(java: Sequence[str]) -> list[str]:
    """Return how a configured node is run in its folder, by this command up to its main class."""
    logging = ["-Dkafka.logs.dir=logs", "-Dlog4j2.configurationFile=log4j2.xml"]
    return [java[0], *logging, *java[1:], "kafka.Kafka", "server.properties"]


def format_command(java: Sequence[str], folder: Path, arguments: str) -> list[str]:
    """Return how Kafka's own tool formats a configured node, in the node's folder.

    More `arguments`, one a line, go into a file: those of a process are anybody's to read.
    """
    command = [*java, "kafka.tools.StorageTool", "format", "-t", new_id(), "-c", "server.properties"]
    if arguments:
        secured.write(folder / "arguments", arguments.encode())
        command.append("@arguments")
    return command


def supply(folder: Path, cache: Path) -> None:
    """Let a node find the jars and the AOT cache below its own folder, by the names that `classpath` uses."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / _SUPPLIES
    if not link.is_symlink() or link.readlink() != cache:
        link.unlink(missing_ok=True)
        link.symlink_to(cache)


def supplied(cache: Path, file: Path) -> str:
    """Return the name, in a node's folder, of a file in the cache."""
    return f"{_SUPPLIES}/{file.relative_to(cache)}"


def format_storage(folder: Path, cluster_id: str, node_id: int, checkpoint: Path) -> None:
    """Make a node's storage, where there is none yet. `checkpoint`: what Kafka's own tool writes in any node's."""
    data = folder / "data"
    if (data / "meta.properties").exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, data / "bootstrap.checkpoint")
    lines = ("version=1", f"cluster.id={cluster_id}", f"node.id={node_id}", f"directory.id={new_id()}")
    # Its name comes last: a storage that a full disk or a kill left half made is made again.
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
    """Write a node's configuration. `ports`, `detours` and `internal` are those of all nodes, as `State` has them.

    With `internal` ports the node is a secured one.
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
        # What `topic keep` says is seen to happen; Kafka itself looks every five minutes.
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
        # The first members of a group need not wait for others that may come.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # A small machine: few threads, small buffers.
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
        # Elections and the return of a killed broker, quicker than on a wide network.
        "controller.quorum.election.timeout.ms": 500,
        "controller.quorum.election.backoff.max.ms": 200,
        "broker.heartbeat.interval.ms": 1000,
        "broker.session.timeout.ms": 6000,
        "metric.reporters": "",
        **(secured.kafka_properties(detours=bool(detours)) if internal else {}),
    }
