"""`brewctl up`, `down`, `status`, `env`: the sandbox's servers and background nodes on this machine."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl import config, security
from brewctl.cli import background, options, output
from brewctl.errors import BrewError, ExitCode, UnreachableError, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.lab.play.background import NodeStatus, Stopped
    from brewctl.sandbox.cluster import Options
    from brewctl.sandbox.health import ServerHealth
    from brewctl.sandbox.state import State


_SECURED = "TLS and a password for every connection"


def up(
    brokers: Annotated[
        int | None, typer.Option(help="Kafka nodes: 3, or 1 for a small machine.", min=1, max=3, show_default="3")
    ] = None,
    postgres_port: Annotated[
        int | None, typer.Option(help="PostgreSQL's port.", min=1, max=65535, show_default="a free one")
    ] = None,
    kafka_port: Annotated[
        int | None,
        typer.Option(help="The first broker's port; the others follow.", min=1, max=65533, show_default="free ones"),
    ] = None,
    java: Annotated[
        str | None, typer.Option(help="A java ≥ 17 of your own.", envvar="BREW_JAVA", show_default="the bundled one")
    ] = None,
    secure: options.Secure = None,
    databases: options.Databases = None,
) -> None:
    """Start real PostgreSQL and Kafka in the background.

    Needs no Docker; waits until they answer. Does nothing if they run. With --secure all connections need TLS and a
    password. With --databases separate, inventory and notifications have databases of their own beside brew.

    Data, logs and state are in BREW_HOME (default: the user's state directory). Kafka's jars are downloaded once, from
    Maven Central or its mirror BREW_MAVEN_REPOSITORY, and kept in XDG_CACHE_HOME.
    """
    from brewctl.sandbox.cluster import Options

    home = config.home()
    chosen = Options(brokers=brokers, postgres_port=postgres_port, kafka_port=kafka_port, java=java, secure=secure)
    chosen = replace(chosen, separate=_separate(databases))
    known = _up(home, chosen)
    for name in known.databases:
        output.emit(f"postgres  127.0.0.1:{known.postgres_port}/{name}")
    output.emit(f"kafka     {','.join(known.brokers)}")
    if known.secure:
        output.emit(f"secured   {_SECURED}")
        output.emit("users     brew may do everything; for those of the roles see brewctl env --help")
    output.emit(f"home      {home}")
    output.emit('next      brewctl demo, or eval "$(brewctl env)" for psql and kcat')


def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove the data too.")] = False,
) -> None:
    """Drain the nodes in the background, then stop the servers.

    The servers' data stay, unless --purge.
    """
    from brewctl.lab.play import background as lab
    from brewctl.sandbox import cluster, state

    home = config.home()
    there = state.exists(home)
    nodes: list[Stopped] = []
    try:
        nodes = lab.stop(home, lab.nodes(home))
    except BrewError:
        if not purge:  # `--purge` must work with a damaged state file too
            raise
    stopped = [node.name for node in nodes if node.ending != lab.Ending.GONE]
    try:
        stopped += cluster.down(home, purge=purge)
    finally:  # after the servers have stopped, as a closed stdout ends the command
        background.report(nodes)
    output.emit(f"stopped {', '.join(stopped)}" if stopped else f"nothing was running in {home}")
    if purge and there:
        output.emit(f"removed the data in {home}")
    if killed := [node.name for node in nodes if node.ending == lab.Ending.KILLED]:
        raise BrewError(f"{', '.join(killed)} did not drain", hint=background.UNDRAINED)


def status(as_json: options.AsJson = False) -> None:
    """Show servers and background nodes, and their states.

    Exit 1 unless all servers answer and all nodes run. With --json a server has `answers`, a node `role` and `state`.
    """
    from brewctl.lab.play import background as lab
    from brewctl.sandbox import health, state

    home = config.home()
    servers, nodes = health.of_servers(home), lab.status(home)
    rows: list[ServerHealth | NodeStatus] = [*servers, *nodes]
    if as_json:
        output.emit_json([asdict(row) for row in rows])
    elif not rows:
        output.emit(f"no sandbox in {home}: run `brewctl up`")
    else:
        width = max(len(row.name) for row in rows)
        answers = [("yes" if row.answers else "no") if row.pid else "stopped" for row in servers]
        _table(width, "server", "answers", zip(servers, answers, strict=True))
        _table(width, "node", "state", ((row, row.state) for row in nodes))
        if (known := state.load(home)) and known.separate:
            output.emit(f"databases: {', '.join(known.databases)}")
        if any(row.secured for row in servers):
            output.emit(f"secured: {_SECURED} of the servers")
    if not rows or not all(row.answers for row in servers) or any(row.state != "runs" for row in nodes):
        raise typer.Exit(ExitCode.FAILED)


def _table(width: int, kind: str, how: str, rows: "Iterable[tuple[ServerHealth | NodeStatus, str]]") -> None:
    """Print a table of servers or nodes, with each one's state in the column `how`; nothing without rows."""
    header = f"{kind:<{width}}{'pid':>8}{'port':>7}{'memory':>9}  {how:<9}log"
    for row, word in rows:
        if header:
            output.emit(header)
            header = ""
        memory = f"{row.memory_bytes / 2**20:.0f} MB" if row.pid else "-"
        output.emit(f"{row.name:<{width}}{row.pid or '-':>8}{row.port or '-':>7}{memory:>9}  {word:<9}{row.log}")


def env(
    as_role: Annotated[
        str,
        typer.Option(
            "--as",
            help="Use this role's user of a secured sandbox, such as order or reader.",
            metavar="ROLE",
            show_default="the superuser",
        ),
    ] = "",
    as_json: options.AsJson = False,
) -> None:
    """Print export lines for other tools, password included.

    For a secured sandbox they name the files with the passwords. BREW_ORDER_ADDRS is included if order nodes run in the
    background.

    A secured sandbox has a user for each of owner, order, publisher, inventory, notifications, reader and operator, in
    PostgreSQL and in Kafka. They have no rights before `brewctl db grants --apply` and `brewctl topic grants --apply`.
    """
    import shlex

    from brewctl.lab.play import background as lab
    from brewctl.sandbox import state

    home = config.home()
    found = state.endpoints(home, role=as_role)
    if not found:
        raise UnreachableError(f"no sandbox runs in {home}", hint="run `brewctl up`")
    names = config.ENVIRONMENT | security.KAFKA | security.ORDER
    variables = {names.get(name, name): value for name, value in found.items()} | lab.serving(home)
    if as_json:
        output.emit_json(variables)
        return
    for name, value in variables.items():
        output.emit(f"export {name}={shlex.quote(value)}")


@contextmanager
def borrowed(
    home: Path, *, keep: bool, secure: bool | None = None, databases: options.Databases = None
) -> Iterator[None]:
    """Start the sandbox for the block. It is stopped afterwards, unless it ran before or `keep`."""
    from brewctl.lab.play import background as lab
    from brewctl.sandbox import cluster

    ran_before = cluster.running(home)
    _up(home, cluster.Options(secure=secure, separate=_separate(databases)))
    os.environ.update(lab.serving(home))  # order nodes of this command read them
    try:
        yield
    finally:
        if not ran_before and not keep:
            output.note("the sandbox stops; `brewctl up` brings it back")
            cluster.down(home)


@contextmanager
def emptied(
    command: str,
    *,
    database_url: str | None,
    brokers: str | None,
    topic: str | None,
    keep: bool,
    yes: bool,
    secure: bool | None = None,
    databases: options.Databases = None,
) -> Iterator["Settings"]:
    """Yield settings for a command that empties tables and topics: of configured servers, else of a sandbox.

    Asks before configured servers are emptied. Raises UsageError if only one of PostgreSQL and Kafka is configured.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    own = settings.configured & {"database_url", "brokers"}
    if len(own) == 1:
        hint = "set BREW_DATABASE_URL and BREW_KAFKA_BROKERS, or neither"
        raise UsageError(f"the {command} needs both servers", hint=hint)
    if own:
        if secure is not None:
            raise UsageError("--secure is for a sandbox, and these are servers of your own", hint="leave it out")
        if databases is not None:
            hint = "leave it out; BREW_<GROUP>_DATABASE_URL names the database of a service"
            raise UsageError("--databases is for a sandbox, and these are servers of your own", hint=hint)
        what = f"every order in the database and topic {settings.topic} on {','.join(settings.brokers)}"
        options.confirm_destruction(what, mine=False, yes=yes)
        yield settings
    else:
        _refuse_own(command, settings)
        _refuse_nodes(config.home())
        with borrowed(config.home(), keep=keep, secure=secure, databases=databases):
            yield options.settings(topic=topic)


def _refuse_own(command: str, settings: "Settings") -> None:
    # A downstream's own database, which is not the sandbox's, would be emptied too, without a question.
    from brewctl.delivery.schema import registration

    own = [each.named_by for each in settings.own_databases if each.variable in settings.configured]
    if own and registration.apart(settings):
        hint = f"unset {' and '.join(own)}, or set BREW_DATABASE_URL and BREW_KAFKA_BROKERS too"
        raise UsageError(f"the {command} is on the sandbox, and {own[0]} leads elsewhere", hint=hint)


def _refuse_nodes(home: Path) -> None:
    # Running nodes would process events too, and their groups' offsets can't be deleted.
    from brewctl.lab.play import background as lab

    if running := [node.name for node in lab.status(home) if node.pid]:
        raise BrewError(f"nodes run in the background ({', '.join(running)})", hint="run `brewctl stop --all`")


def _separate(databases: options.Databases) -> bool | None:
    return None if databases is None else databases is options.Separation.SEPARATE


def _up(home: Path, chosen: "Options") -> "State":
    from rich.console import Console

    from brewctl.cli.progress import Shown
    from brewctl.sandbox import cluster

    with Shown(Console(stderr=True)) as progress:
        return cluster.up(home, chosen, progress)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: brewctl up --kafka-port 9092 --postgres-port 5432")(up)
    app.command(epilog="Example: brewctl down --purge")(down)
    app.command(epilog="Example: brewctl status --json")(status)
    app.command(epilog='Example: eval "$(brewctl env)" && psql "$BREW_DATABASE_URL"')(env)
