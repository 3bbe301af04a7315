"""The sandbox as a whole: up and down."""

import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from brewctl.delivery import database
from brewctl.delivery.schema import registration, setup
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import (
    kafka,
    kafka_node,
    parts,
    ports,
    postgres,
    postgres_tls,
    processes,
    secured,
    state,
    surroundings,
)
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State
from brewctl.signals import interrupts_held

# The folders of a home.
_PARTS = ("postgres", "kafka", "logs", "nodes")
_SECURED_PARTS = ("tls",)
# The least free disk space for a new sandbox.
ROOM_BYTES = 200 * 10**6
_PORT_CHOICES = 3
_LAST_CHILDREN_S = 5.0  # for the children of an ended server to end, too


@dataclass(frozen=True)
class Options:
    """The user's options. None: as the sandbox has it; for a new one a free port, 3 brokers, the bundled Java."""

    brokers: int | None = None
    postgres_port: int | None = None
    kafka_port: int | None = None  # the first broker's; the others get the next ports
    java: str | None = None
    secure: bool | None = None  # TLS and passwords for PostgreSQL and Kafka
    separate: bool | None = None  # databases of their own for the story's downstreams


def up(home: Path, options: Options, progress: kafka.Progress) -> State:
    """Start the servers that don't run, wait until all answer, apply the schema, create the topics.

    Harmless where all of it runs. What this call started is ended again where it fails or is interrupted.
    """
    with state.locked(home):
        known = state.load(home) or State.without_sandbox()
        new = not known.has_sandbox
        if new:
            known = replace(_new_state(options), nodes=known.nodes, home=home)
        _check(known, options)
        for more in reversed(range(_PORT_CHOICES)):
            try:
                _bring_up(home, known, options, progress)
                break
            except processes.PortTakenError:
                # Free when it was chosen, and taken before its server listened.
                if not new or not more or options.postgres_port or options.kafka_port:
                    raise
                progress.step("a port was taken meanwhile: others are chosen")
                known = replace(known, **_ports(options, len(known.kafka_ports), secure=known.secure))
    return known


def _bring_up(home: Path, known: State, options: Options, progress: kafka.Progress) -> None:
    missing = [name for name in known.ports if name not in known.servers or not processes.find(known.servers[name])]
    if missing:
        parts.require(java=options.java, secure=known.secure)
        if known.secure:
            postgres_tls.require()
        _require(home, known, missing)
    if not known.kafka_detours:
        known.kafka_detours = [(processes.free_port(), processes.free_port()) for _ in known.kafka_ports]
    _resume(known)
    with _ended_on_failure(home, known, missing):
        if known.secure:
            _secure(home, known, missing, progress)
        _start(home, known, missing, options, progress)
        settings = known.settings
        if missing:
            progress.step("schema and topics")
        with database.connect(settings) as connection:
            # Only if tables are missing: it locks tables that roles may be using.
            if setup.missing_tables(connection, tables=registration.story_tables(settings)):
                registration.initialize_story(settings, connection)
        for full in registration.apart(settings):
            registration.initialize_apart(settings, full)
        topics.create(settings)


def down(home: Path, *, purge: bool = False) -> list[str]:
    """End all servers, each within a time limit; `purge` also removes the data. Returns the names of those that ran.

    Touches nothing where nothing is remembered. Background nodes are left alone; nothing is removed while one runs.
    """
    if not state.exists(home):
        return []
    with state.locked(home):
        try:
            known = state.load(home)
        except BrewError:
            if not purge:
                raise
            known = None
        running = [server for server in known.servers.values() if processes.find(server)] if known else []
        _end(running)
        if known and not purge:
            known.servers.clear()
            state.save(home, known)
        if purge:
            _require_unused(home)
            for part in (*_PARTS, *_SECURED_PARTS, "state.json"):
                target = home / part
                with suppress(FileNotFoundError):
                    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return [server.name for server in running]


def _require_unused(home: Path) -> None:
    """Raise BrewError if a process that a damaged state file does not name works in this home."""
    folders = [home / "postgres", home / "kafka", home / "nodes"]
    deadline = time.monotonic() + _LAST_CHILDREN_S
    while strangers := [process for folder in folders for process in processes.working_in(folder)]:
        if time.monotonic() > deadline:
            pids = " ".join(str(process.pid) for process in strangers)
            raise BrewError(f"{home} is still used by process {pids}", hint=f"kill {pids}, then try again")
        time.sleep(0.05)


def running(home: Path) -> bool:
    """Say whether any server of the sandbox runs."""
    known = state.load(home)
    return known is not None and any(processes.find(server) for server in known.servers.values())


def _require(home: Path, known: State, missing: list[str]) -> None:
    """Raise BrewError if the missing servers can't be started here, before anything is created or downloaded."""
    surroundings.require_usable(home, "BREW_HOME")
    for name in missing:
        for port in known.ports[name]:
            processes.require_free(name, port)
    if "postgres" in missing:
        postgres.require(home)
    if not (home / "postgres").exists() and (free := shutil.disk_usage(home).free) < ROOM_BYTES:
        message = f"{free / 10**6:.0f} MB are free for {home}, and a sandbox takes {ROOM_BYTES / 10**6:.0f}"
        raise BrewError(message, hint="make room, or set BREW_HOME to a folder on another disk")


def _new_state(options: Options) -> State:
    secure = bool(options.secure)
    return State(
        password=secrets.token_urlsafe(24),
        cluster_id=kafka_node.new_id(),
        secure=secure,
        separate=bool(options.separate),
        kafka_password=secrets.token_urlsafe(24) if secure else "",
        users={secured.name(role): secrets.token_urlsafe(24) for role in secured.ROLES} if secure else {},
        **_ports(options, options.brokers or 3, secure=secure),
    )


def _ports(options: Options, brokers: int, *, secure: bool) -> ports.ChosenPorts:
    return ports.choose(brokers, secure=secure, postgres=options.postgres_port, kafka=options.kafka_port)


def _check(known: State, options: Options) -> None:
    """Raise UsageError for options that an existing sandbox can't change: its brokers, ports and security."""
    hint = "run `brewctl down --purge` first, which removes its data"
    if options.secure is not None and options.secure != known.secure:
        raise UsageError(f"this sandbox was made {'with' if known.secure else 'without'} --secure", hint=hint)
    if options.separate is not None and options.separate != known.separate:
        has = "a database for each service" if known.separate else "one database"
        raise UsageError(f"this sandbox has {has}", hint=hint)
    if options.brokers and options.brokers != len(known.kafka_ports):
        raise UsageError(f"this sandbox has {len(known.kafka_ports)} brokers, not {options.brokers}", hint=hint)
    if options.kafka_port and options.kafka_port != known.kafka_ports[0][0]:
        raise UsageError(
            f"this sandbox's first broker has port {known.kafka_ports[0][0]}, not {options.kafka_port}", hint=hint
        )
    if options.postgres_port and options.postgres_port != known.postgres_port:
        raise UsageError(
            f"this sandbox's postgres has port {known.postgres_port}, not {options.postgres_port}", hint=hint
        )


def _secure(home: Path, known: State, missing: list[str], progress: kafka.Progress) -> None:
    """Write the certificates and passwords that servers and clients of a secured sandbox read."""
    parts.require(secure=True)
    from brewctl.sandbox import certificates  # noqa: PLC0415 - a library that no other sandbox needs

    if certificates.ensure(home, running=[name for name in known.ports if name not in missing]):
        progress.step("certificates")
    secured.write_passwords(home, postgres=known.password, kafka=known.kafka_password, users=known.users)


def _start(home: Path, known: State, missing: list[str], options: Options, progress: kafka.Progress) -> None:
    brokers = [name for name in missing if name != "postgres"]
    if brokers:
        kit = kafka.prepare(options.java, progress)
        progress.step(f"{', '.join(brokers)} start")
        for name in brokers:
            with interrupts_held():
                _record(home, known, kafka.start(home, known, name, kit))
    if "postgres" in missing:
        binaries = postgres_tls.prepare(progress.advance) if known.secure else postgres.wheel_binaries()
        progress.step("postgres starts")
        with interrupts_held():
            _record(home, known, postgres.start(home, known, binaries))
    postgres.wait_ready(known.servers["postgres"], known)
    postgres.make_users(known)
    kafka.wait_ready(known)


def _resume(known: State) -> None:
    """Continue paused servers, which would never answer."""
    for server in known.servers.values():
        process = processes.find(server)
        if process and processes.is_paused(process):
            process.send_signal(signal.SIGCONT)


def _record(home: Path, known: State, server: Server) -> None:
    known.servers[server.name] = server
    state.save(home, known)


@contextmanager
def _ended_on_failure(home: Path, known: State, missing: list[str]) -> Iterator[None]:
    try:
        for part in _PARTS:
            (home / part).mkdir(mode=0o700, exist_ok=True)
        state.save(home, known)
        yield
    except OSError as error:
        _undo(home, known, missing)
        raise BrewError(f"{error.filename or home}: {(error.strerror or str(error)).lower()}") from error
    except BaseException:
        _undo(home, known, missing)
        raise


def _undo(home: Path, known: State, missing: list[str]) -> None:
    _end([known.servers.pop(name) for name in missing if name in known.servers])
    with suppress(BrewError):  # the disk may be full
        state.save(home, known)


def _end(servers: list[Server]) -> None:
    # Brokers first, all at once, then the database.
    kafka.stop([server for server in servers if server.name != "postgres"])
    processes.end([server for server in servers if server.name == "postgres"], postgres.STOP)
