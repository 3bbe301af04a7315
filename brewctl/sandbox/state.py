"""The state file of a home: its sandbox and its background nodes, in one JSON file that is written atomically."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from brewctl.config import ENVIRONMENT, SHORT_NAMES, Settings, own_database_variable
from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import secured
from brewctl.sandbox.server import Server
from brewctl.security import KafkaSecurity, Secret

_VERSION = 1
DATABASE = "brew"
_LOCK_WAIT_S = 180


@dataclass
class State:
    """A sandbox's configuration, which survives `down`; its running servers and background nodes, which do not."""

    password: str
    cluster_id: str
    postgres_port: int
    # (client port, controller port) of each broker.
    kafka_ports: list[tuple[int, int]]
    # (port, advertised port) of each broker's second listener. A client that connects there is told the advertised
    # ports of all brokers, where a proxy may simulate a faulty network. Empty in an older sandbox.
    kafka_detours: list[tuple[int, int]] = field(default_factory=list)
    # Whether clients need TLS and a password. If so: Kafka's password, and each broker's port for the other brokers.
    secure: bool = False
    kafka_password: str = ""
    kafka_internal: list[int] = field(default_factory=list)
    # Whether the story's downstreams have databases of their own.
    separate: bool = False
    # The further users of a secured sandbox, in both servers, with their passwords.
    users: dict[str, str] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    # Background nodes in the order of their start. A node that ended by itself stays until it is stopped or restarted.
    nodes: dict[str, Server] = field(default_factory=dict)
    # The folder that it was read from; not written to the file.
    home: Path = field(default=Path(), compare=False)

    @classmethod
    def without_sandbox(cls) -> Self:
        """Return the state of a home without a sandbox, whose nodes use servers of the user's own."""
        return cls(password="", cluster_id="", postgres_port=0, kafka_ports=[])

    @property
    def has_sandbox(self) -> bool:
        """Whether the home has a sandbox."""
        return bool(self.kafka_ports)

    @property
    def database_url(self) -> str:
        """The URL of the story's database, with the password, or in a secured sandbox with the password's file."""
        return next(iter(self.database_urls().values()))

    def database_urls(self, user: str = secured.USER) -> dict[str, str]:
        """Return each database's URL for a user, by the variable that holds it: the story's first."""
        places = {ENVIRONMENT["database_url"]: DATABASE}
        places |= {own_database_variable(name): name for name in self.databases if name != DATABASE}
        if self.secure:
            return {
                variable: secured.database_url(self.home, self.postgres_port, name, user=user)
                for variable, name in places.items()
            }
        place = f"postgresql://{secured.USER}:{self.password}@127.0.0.1:{self.postgres_port}"
        return {variable: f"{place}/{name}" for variable, name in places.items()}

    @property
    def databases(self) -> tuple[str, ...]:
        """The databases' names, the story's first."""
        return (DATABASE, *(SHORT_NAMES if self.separate else ()))

    @property
    def brokers(self) -> list[str]:
        """The brokers' addresses, HOST:PORT."""
        return [f"127.0.0.1:{port}" for port, _ in self.kafka_ports]

    def user(self, role: str) -> str:
        """Return the name of a role's user. Raises UsageError where there is none."""
        if not self.secure:
            hint = "run `brewctl down --purge`, then `brewctl up --secure`"
            raise UsageError("this sandbox has a single user: it was made without --secure", hint=hint)
        if (user := secured.name(role)) not in self.users:
            roles = ", ".join(each for each in secured.ROLES if secured.name(each) in self.users)
            raise UsageError(f"this sandbox has no user for role {role[:40]!r}", hint=f"it has {roles or 'none'}")
        return user

    @property
    def settings(self) -> Settings:
        """The settings by which clients reach its servers."""
        kafka = secured.kafka_security(self.home) if self.secure else KafkaSecurity()
        (_, url), *own = self.database_urls().items()
        return Settings(
            database_url=url,
            brokers=tuple(self.brokers),
            own_databases=tuple(Secret(variable, own_url) for variable, own_url in own),
            kafka_security=kafka,
        )

    @property
    def ports(self) -> dict[str, tuple[int, ...]]:
        """The ports that each server listens on, by its name; the clients' port first."""
        return {
            "postgres": (self.postgres_port,),
            **{
                f"kafka-{number}": (*ports, *self.kafka_internal[number - 1 : number])
                for number, ports in enumerate(self.kafka_ports, start=1)
            },
        }


class UnreadableHomeError(BrewError):
    """This user can't read the home, so it is unknown whether it has a sandbox."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(f"{path} can't be read ({reason})", hint="set BREW_HOME to a folder of yours")


def exists(home: Path) -> bool:
    """Say whether the home has a state file. Raises UnreadableError."""
    path = home / "state.json"
    try:
        return path.exists()
    except OSError as error:
        raise UnreadableHomeError(path, error) from error


def load(home: Path) -> State | None:
    """Read a home's state; None if it has none. Raises UnreadableError, and BrewError if the file is damaged."""
    path = home / "state.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
        if raw.pop("version") != _VERSION:
            raise BrewError(f"{path} is of another version of brewctl", hint="run `brewctl down --purge`")
        raw["servers"] = _processes(raw["servers"])
        raw["nodes"] = _processes(raw.get("nodes", {}))
        for name in ("kafka_ports", "kafka_detours"):
            raw[name] = [(int(one), int(other)) for one, other in raw.get(name, [])]
        return State(**raw, home=home)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        hint = "run `brewctl down --purge`, which deletes the sandbox's data"
        raise BrewError(f"{path} is damaged", hint=hint) from error
    except OSError as error:
        if isinstance(error, NotADirectoryError) and not home.exists():  # below a home folder like /dev/null
            return None
        raise UnreadableHomeError(path, error) from error


def save(home: Path, state: State) -> None:
    """Write a home's state atomically, readable by its owner only. Raises BrewError."""
    temporary = home / f".state.{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            written = {name: value for name, value in asdict(state).items() if name != "home"}
            json.dump({"version": _VERSION, **written}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(home / "state.json")
    except OSError as error:
        message = f"{home / 'state.json'} can't be written ({(error.strerror or str(error)).lower()})"
        raise BrewError(message, hint="make room, or set BREW_HOME to a folder on another disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def _processes(raw: dict[str, dict[str, Any]]) -> dict[str, Server]:
    return {name: Server(**process) for name, process in raw.items()}


def endpoints(home: Path, *, role: str = "") -> dict[str, str]:
    """Return the settings (see config.resolve) of the running sandbox, as recorded, and of background order nodes.

    They include the databases of single downstreams, by the variables that hold their URLs. With a `role` they are
    those of its user; raises UsageError where the role has none.
    """
    known = load(home)
    if known is None:
        return {}
    user = known.user(role) if role else secured.USER
    found: dict[str, str] = {}
    if known.servers:
        (_, url), *own = known.database_urls(user).items()
        found = {"database_url": url, "brokers": ",".join(known.brokers), **dict(own)}
    if known.servers and known.secure:
        found |= secured.kafka_endpoints(home, user=user) | secured.order_endpoints(home)
    if orders := [node for node in known.nodes.values() if node.role == "order"]:
        from brewctl.sandbox import processes  # noqa: PLC0415 - psutil, which few commands need

        if running := [node for node in orders if processes.find(node)]:
            found["order_addrs"] = ",".join(f"127.0.0.1:{node.port}" for node in running)
    return found


def serving(home: Path) -> tuple[str, str] | None:
    """Return order-service's certificate and key files, if a secured sandbox runs; else None."""
    known = load(home)
    return secured.serving(home) if known and known.secure and known.servers else None


@contextlib.contextmanager
def locked(home: Path, *, variable: str = "BREW_HOME") -> Iterator[None]:
    """Lock a folder against other commands; create it, closed to other users, if need be.

    Waits up to 180 s for the lock. Raises BrewError if it can't be had. `variable`: the setting that names the folder.
    """
    try:
        _make(home)
        file = (home / "lock").open("w")
    except OSError as error:
        message = f"{home} can't be used ({(error.strerror or str(error)).lower()})"
        raise BrewError(message, hint=f"set {variable} to a folder of yours") from error
    with file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BrewError(
                        f"another brewctl is still at work in {home}", hint="wait for it, or end it"
                    ) from None
            time.sleep(0.1)
        yield


def _make(folder: Path) -> None:
    """Create a folder and its parents so that no other user can write there, whatever the umask."""
    for above in reversed([place for place in folder.parents if not place.exists()]):
        above.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
