"""Kafka in KRaft mode: combined broker and controller nodes, each a JVM on loopback.

A throw-away node prepares two things once for each user, which are kept beside the jars: an AOT cache, which halves
the start of a node, and a checkpoint file, by which a node's storage is formatted without a JVM. docs/operations.md has
the figures.
"""

import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import psutil

from brewctl.delivery.broker import Broker, open_admin
from brewctl.errors import BrewError
from brewctl.sandbox import cache, jars, jvm, kafka_node, processes, secured, surroundings
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

_READY_S = 90.0
_TRAINING_S = 120.0
_STOP_S = 8.0
_CHECKPOINT = "bootstrap.checkpoint"
# A crash of the machine may leave a cache with empty parts. Java checks for that, else such a cache ends each node.
_AOT_CHECKED = "-XX:+VerifySharedSpaces"


class Progress(Protocol):
    """Receives the steps of `prepare` and `up`, to show them."""

    def step(self, text: str) -> None:
        """A step begins."""

    def advance(self, done: int, total: int, what: str) -> None:
        """`done` of `total` downloads are done."""


@dataclass(frozen=True)
class Kit:
    """What every node needs to start: Java, the jars, the AOT cache, the checkpoint."""

    java: Sequence[str]  # the command, up to the main class
    environment: Mapping[str, str]
    supplies: Path  # the folder of the jars and the AOT cache, to which a node's folder has a link
    checkpoint: Path  # bootstrap.checkpoint, as `kafka-storage format` writes it


def prepare(java: str | None, progress: Progress) -> Kit:
    """Download the jars and create the AOT cache, unless they are there. Raises BrewError.

    `java`: a Java of the user's own, 17 or later. It gets no AOT cache.
    """
    binary, version = (jvm.found(java), "") if java is not None else jvm.bundled()
    command = [binary, *jvm.OPTIONS] if java is not None else [binary, *jvm.OPTIONS, *jvm.BUNDLED_OPTIONS]
    with cache.opened(_is_complete) as folder:
        found = jars.present(folder / "jars")
        if found is None:
            cache.require_room(folder)
            found = jars.fetch(folder / "jars", progress.advance)
        classpath = jvm.environment([kafka_node.supplied(folder, jar) for jar in found])
        kit = Kit(command, classpath, folder, _checkpoint(folder, command, classpath))
        aot = folder / f"java-{version}.aot"
        if java is not None or not (cache.has(aot) or cache.writable(folder)):
            return kit
        if not cache.has(aot):
            progress.step("preparing Kafka's quick start (once)")
            _train(kit, aot)
        # If the cache does not fit this Java, it reports that in the console log and starts without the cache.
        quick = [f"-XX:AOTCache={kafka_node.supplied(folder, aot)}", _AOT_CHECKED]
        return replace(kit, java=[binary, *quick, *command[1:]])


def require_cache() -> None:
    """Raise BrewError if the cache is incomplete and can't be written."""
    folder = cache.folder()
    try:
        usable = cache.writable(folder) or (folder.is_dir() and _is_complete(folder))
    except OSError as error:
        raise cache.unusable(folder) from error
    if not usable:
        raise cache.unusable(folder)


@dataclass(frozen=True)
class Tools:
    """How to run Kafka's command line tools."""

    java: Sequence[str]  # the command, up to the main class
    environment: Mapping[str, str]
    folder: Path  # their working directory


def tools() -> Tools:
    """Return how the bundled Java runs Kafka's command line tools; download missing jars. Raises BrewError."""
    binary, _ = jvm.bundled()
    with cache.opened(lambda folder: jars.present_tools(folder / "jars") is not None) as folder:
        found = jars.fetch_tools(folder / "jars")
        names = [str(jar.relative_to(folder)) for jar in found]
        return Tools([binary, "-Xmx512m", *jvm.BUNDLED_OPTIONS], jvm.environment(names), folder)


def start(home: Path, known: State, name: str, kit: Kit) -> Server:
    """Start a node; create its storage at the first start. Does not wait until it is ready: see `wait_ready`."""
    node_id = int(name.removeprefix("kafka-"))
    client_port, controller_port = known.kafka_ports[node_id - 1]
    processes.require_free(name, client_port)
    processes.require_free(f"{name}'s controller", controller_port)
    folder = home / "kafka" / str(node_id)
    checkpoint = _checkpoint_of_users(home, known, kit) if known.secure else kit.checkpoint
    kafka_node.format_storage(folder, known.cluster_id, node_id, checkpoint)
    kafka_node.configure(folder, node_id, known.kafka_ports, known.kafka_detours, known.kafka_internal)
    kafka_node.supply(folder, kit.supplies)
    return processes.spawn(
        name,
        kafka_node.command(kit.java),
        port=client_port,
        log=folder / "logs" / "server.log",
        console=folder / "logs" / "console.log",
        cwd=folder,
        env=kit.environment,
    )


def wait_ready(known: State) -> None:
    """Wait until the cluster reports all of its brokers.

    Raises BrewError with the answer to the last try and the end of a log.
    """
    servers = [server for server in known.servers.values() if server.name != "postgres"]
    said = ""

    def complete() -> bool:
        nonlocal said
        if not all(_listens(server.port) for server in servers):
            return False
        try:
            count = len(_brokers(known))
        except BrewError as error:
            said = error.message
            return False
        said = f"the cluster counts {count} of {len(servers)} brokers"
        return count == len(servers)

    processes.wait_ready(servers, complete, timeout_s=_READY_S, why=lambda: said)


def answering(known: State) -> set[str]:
    """Return the names of the nodes that answer; each is asked by itself."""
    return {
        f"kafka-{number}"
        for number, (port, _) in enumerate(known.kafka_ports, start=1)
        if _listens(port) and _registered(known, broker=f"127.0.0.1:{port}")
    }


def stop(servers: Sequence[Server]) -> None:
    """End nodes: SIGTERM to all; SIGKILL once all have closed their logs, or after 8 s.

    Nodes are not waited for until they end: the last node of a quorum waits 5 s for a successor that can't come, and
    nodes that get SIGTERM right after their start may wait for ever.
    """
    for process in (running := [process for server in servers if (process := processes.find(server))]):
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline and (running := [process for process in running if process.is_running()]):
        _, running = psutil.wait_procs(running, timeout=0.3)
        if all(_closed(server) for server in servers if processes.find(server)):
            break
    processes.end(servers, ((signal.SIGKILL, 5.0),))


def _is_complete(folder: Path) -> bool:
    """Say whether the folder has all that nodes need, apart from the AOT cache."""
    return cache.has(folder / _CHECKPOINT) and jars.present(folder / "jars") is not None


def _closed(server: Server) -> bool:
    return (Path(server.log).parent.parent / "data" / ".kafka_cleanshutdown").exists()


def _brokers(known: State, *, broker: str = "") -> list[Broker]:
    with open_admin(known.settings, broker=broker) as admin:
        return admin.brokers()


def _registered(known: State, *, broker: str = "") -> list[Broker]:
    try:
        return _brokers(known, broker=broker)
    except BrewError:
        return []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _checkpoint(folder: Path, java: Sequence[str], environment: Mapping[str, str]) -> Path:
    """Return the checkpoint file; create it with Kafka's own tool. It is the same for every node and cluster."""
    checkpoint = folder / _CHECKPOINT
    if not cache.has(checkpoint):
        _format(java, environment, folder, checkpoint)
    return checkpoint


def _checkpoint_of_users(home: Path, known: State, kit: Kit) -> Path:
    """Return the checkpoint of a secured sandbox. It has the users' SCRAM credentials, so it is not in the cache."""
    checkpoint = home / "kafka" / _CHECKPOINT
    passwords = {secured.USER: known.kafka_password, **known.users}
    if not cache.has(checkpoint):
        _format(kit.java, kit.environment, kit.supplies, checkpoint, secured.scram_arguments(passwords))
    return checkpoint


def _format(
    java: Sequence[str], environment: Mapping[str, str], supplies: Path, checkpoint: Path, arguments: str = ""
) -> None:
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as name:
        node = Path(name)
        kafka_node.configure(node, 1, [(processes.free_port(), processes.free_port())])
        kafka_node.supply(node, supplies)
        command = kafka_node.format_command(java, node, arguments)
        made = surroundings.run(command, cwd=node, env=environment, timeout_s=60)
        if made.returncode:
            reason = (made.stderr or made.stdout).strip().splitlines()[-1:]
            raise BrewError(f"kafka can't format its storage: {' '.join(reason)}", hint="is java 17 or later?")
        (node / "data" / _CHECKPOINT).chmod(0o600)
        (node / "data" / _CHECKPOINT).rename(checkpoint)


def _train(kit: Kit, aot: Path) -> None:
    """Create the AOT cache: run a throw-away node until it answers, then keep what Java recorded."""
    with tempfile.TemporaryDirectory(dir=aot.parent) as name:
        folder = Path(name)
        ports = [(processes.free_port(), processes.free_port())]
        kafka_node.format_storage(folder, kafka_node.new_id(), 1, kit.checkpoint)
        kafka_node.configure(folder, 1, ports)
        kafka_node.supply(folder, kit.supplies)
        command = kafka_node.command([kit.java[0], "-XX:AOTCacheOutput=trained", *kit.java[1:]])
        console = folder / "console.log"
        server = processes.spawn(
            "kafka-training", command, port=ports[0][0], log=console, console=console, cwd=folder, env=kit.environment
        )
        known = State("", "", 0, ports)
        try:
            processes.wait_ready(
                [server], lambda: _listens(server.port) and bool(_registered(known)), timeout_s=_READY_S
            )
            # Java writes the cache when it ends.
            processes.end([server], ((signal.SIGTERM, _TRAINING_S),))
        finally:
            processes.end([server], ((signal.SIGKILL, 5.0),))
        if (folder / "trained").exists():
            (folder / "trained").rename(aot)
