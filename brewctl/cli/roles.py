"""`brewctl serve …`, `brewctl publish` and `brewctl consume …`: one replica of a role, in the foreground."""

import dataclasses
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from brewctl import config
from brewctl.cli import options, output
from brewctl.errors import UsageError

if TYPE_CHECKING:
    from brewctl.roles.listening import Security

Session = Annotated[
    float,
    typer.Option(
        help="Seconds of silence after which Kafka gives this node's partitions to others.",
        envvar="BREW_SESSION_TIMEOUT",
        min=3,
        max=300,
    ),
]


_SECURITY = "Security"


def _file(*names: str, text: str, variable: str) -> Any:
    return typer.Option(*names, help=text, envvar=variable, metavar="FILE", rich_help_panel=_SECURITY)


CertificateFile = Annotated[
    str | None,
    _file(
        "--tls-cert", text="Serve TLS with this certificate and its chain, PEM.", variable="BREW_SERVE_TLS_CERT_FILE"
    ),
]
KeyFile = Annotated[
    str | None,
    _file("--tls-key", text="Its key, PEM, without a password.", variable="BREW_SERVE_TLS_KEY_FILE"),
]
ClientCaFile = Annotated[
    str | None,
    _file(
        "--tls-client-ca",
        text="Take clients alone that show a certificate of these authorities, PEM.",
        variable="BREW_SERVE_TLS_CLIENT_CA_FILE",
    ),
]
TokensFile = Annotated[
    str | None,
    _file(
        "--tokens",
        text="Take calls alone with a bearer token of these: lines TENANT TOKEN, or TENANT sha256:DIGEST.",
        variable="BREW_SERVE_TOKENS_FILE",
    ),
]

_ANY = "MODULE:NAME"
_CONSUME = "Run a consumer; alone, list those configured."


class _Consumers(typer.core.TyperGroup):
    """Takes any other word for a downstream of the user's own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the first word, what runs it, and its arguments."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return args[0], self.commands[_ANY], args[1:]


def configured(ctx: typer.Context) -> None:
    """Run a consumer; alone, list those configured."""
    if ctx.invoked_subcommand:
        return
    from brewctl.delivery import registry

    names = options.settings().downstreams
    rows = [(config.short_name(name), registry.find(name)) for name in names]
    width = max((len(name) for name, _ in rows), default=0)
    for name, found in rows:
        output.emit(f"{name:<{width}}  group {found.group}, takes {', '.join(found.events)}")
    output.note("next: brewctl consume NAME, or MODULE:NAME for one of your own")


def order(
    node: options.Node = "",
    port: Annotated[int, typer.Option(help="Port for gRPC; 0 takes a free one.", min=0, max=65535)] = 50081,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    workers: Annotated[
        int, typer.Option(help="Processes that share the port, for machines with more cores.", min=1, max=64)
    ] = 1,
    no_publisher: Annotated[
        bool, typer.Option("--no-publisher", help="Leave publishing to `brewctl publish`.")
    ] = False,
    tls_cert: CertificateFile = None,
    tls_key: KeyFile = None,
    tls_client_ca: ClientCaFile = None,
    tokens: TokensFile = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without TLS.", rich_help_panel=_SECURITY)
    ] = False,
    log_format: options.Format = config.LogFormat.LOGFMT,
    http: options.Http = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run a replica of order-service, with its outbox publisher.

    Ctrl-C drains it. Files of TLS and tokens are read again when they change, without a restart.
    """
    from brewctl.roles.listening import Security

    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    if not (tls_cert or tls_key or insecure or settings.configured & {"database_url", "brokers"}):
        from brewctl.sandbox import state

        tls_cert, tls_key = state.serving(config.home()) or (None, None)
    security = Security(tls_cert, tls_key, tls_client_ca, tokens, insecure)
    security.check(host)
    node = node or f"order-{os.getpid()}"
    if workers > 1:
        _supervise(
            settings,
            node,
            log_format,
            host=host,
            port=port,
            count=workers,
            publishes=not no_publisher,
            security=security,
            http=http,
        )
        return
    from brewctl import lifecycle
    from brewctl.roles import order as role
    from brewctl.roles.workers import await_go

    def run(node: str, stop: threading.Event, health: Any) -> None:
        told = lifecycle.stop_at_end_of_input(stop) if worker else None
        role.run(
            settings,
            stop,
            node=node,
            host=host,
            port=port,
            security=security,
            share_port=worker,
            publishes=not no_publisher,
            ready=lambda: told is None or await_go(node, told, stop),
            health=health,
        )

    _play(node, log_format, run, role="order", http=http, is_worker=worker)


def publish(
    node: options.Node = "",
    log_format: options.Format = config.LogFormat.LOGFMT,
    http: options.Http = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
) -> None:
    """Run a replica that only publishes the outbox's rows.

    For rows of `serve order --no-publisher`, and of services that add events in SQL, with outbox_add().

    Many run side by side, beside order-services that publish too. Ctrl-C drains it.
    """
    settings = options.settings(database_url=database_url, brokers=brokers)
    from brewctl.roles import publisher as role

    def run(node: str, stop: threading.Event, health: Any) -> None:
        role.run(settings, stop, node=node, health=health)

    _play(node or f"publisher-{os.getpid()}", log_format, run, role="publisher", http=http)


def _own(name: str) -> Callable[..., None]:
    """Make the command of one of the story's own downstreams."""

    def run(
        node: options.Node = "",
        session_timeout: Session = config.Limits.session_s,
        log_format: options.Format = config.LogFormat.LOGFMT,
        http: options.Http = "",
        database_url: options.DatabaseUrl = None,
        brokers: options.Brokers = None,
        topic: options.Topic = None,
    ) -> None:
        settings = options.settings(
            database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
        )
        _consume(name, settings, node, log_format, http)

    return run


def downstream(
    ctx: typer.Context,
    node: options.Node = "",
    app_dir: options.AppDir = "",
    watch: Annotated[bool, typer.Option("--watch", help="Start it again when its file changes.")] = False,
    session_timeout: Session = config.Limits.session_s,
    log_format: options.Format = config.LogFormat.LOGFMT,
    http: options.Http = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Run a replica of a downstream of your own.

    It is NAME in MODULE, and consumes in a group of its own.

    Its tables are in BREW_<GROUP>_DATABASE_URL where that is set. Ctrl-C drains it.
    """
    settings = options.settings(
        database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
    )
    name = ctx.info_name or ""
    if watch:
        _consume_watched(name, app_dir, settings, node, log_format, http)
    else:
        _consume(name, settings, node, log_format, http, app_dir=app_dir)


def _consume(
    name: str, settings: config.Settings, node: str, log_format: config.LogFormat, http: str, app_dir: str = ""
) -> None:
    from brewctl.delivery import registry
    from brewctl.roles import consumer

    found = registry.find(name, app_dir)

    def run(node: str, stop: threading.Event, health: Any) -> None:
        consumer.run(settings, found, stop, name=name, node=node, health=health)

    _play(node or _node(found.node or found.group), log_format, run, role=found.group, http=http)


def _consume_watched(
    name: str, app_dir: str, settings: config.Settings, node: str, log_format: config.LogFormat, http: str
) -> None:
    """Run it, and again after each change of its file; one that can't be imported waits for the next change."""
    from brewctl import lifecycle, log
    from brewctl.delivery import registry
    from brewctl.roles import consumer, reloading

    files = reloading.Files(app_dir)
    try:
        found = registry.find(name, app_dir)
    except UsageError as error:
        output.note(output.plain(f"brewctl: {error}"))
        output.note("waits for a change of it …")
        with lifecycle.stop_on_signals() as stop:
            again = reloading.await_change(files, stop)
    else:
        files.imported()
        changes = reloading.Changes()

        def run(node: str, stop: threading.Event, health: Any) -> None:
            with reloading.watched(files, stop, changes):
                consumer.run(settings, found, stop, name=name, node=node, health=health)
            if changes.seen:
                log.say(node, "its file has changed: starts again")

        _play(node or _node(found.node or found.group), log_format, run, role=found.group, http=http)
        again = changes.seen
    if again:
        reloading.restart()


def _node(stem: str) -> str:
    """Return the name of a node that was given none: with room for the pid, and the pid."""
    return f"{stem[: options.NODE_CHARACTERS - 8]}-{os.getpid()}"


def _supervise(
    settings: config.Settings,
    node: str,
    log_format: config.LogFormat,
    *,
    host: str,
    port: int,
    count: int,
    publishes: bool,
    security: "Security",
    http: str,
) -> None:
    from brewctl.roles.workers import Workers

    if len(f"{node}.{count}") > options.NODE_CHARACTERS:
        hint = f"{options.NODE_CHARACTERS - len(f'.{count}')} characters leave room for the workers' numbers"
        raise UsageError(f"--node {node!r} is too long", hint=hint)
    workers = Workers(
        settings,
        node=node,
        count=count,
        host=host,
        port=port,
        log_format=log_format,
        verbose=output.verbose,
        publishes=publishes,
        security=security,
        http=_where(http),
    )

    def run(stop: threading.Event) -> None:
        workers.run(stop)

    _started(node, log_format, run, last=workers.kill)


def _limits(session_s: float) -> config.Limits:
    return dataclasses.replace(config.Limits(), session_s=session_s)


def _where(http: str) -> Any:
    """Return where to serve, None for nowhere. Raises UsageError."""
    if not http:
        return None
    from brewctl import http_endpoint

    return http_endpoint.address(http)


def _play(
    node: str, log_format: config.LogFormat, run: Callable[..., None], *, role: str, http: str, is_worker: bool = False
) -> None:
    """Run a role, with what it shows of itself."""
    where = _where(http)

    def observed(stop: threading.Event) -> None:
        from brewctl.roles import observing

        if is_worker:
            shown = observing.observed_worker(stop, node=node, role=role)
        else:
            shown = observing.observed(where, stop, node=node, role=role)
        with shown as health:
            run(node, stop, health)

    _started(node, log_format, observed)


def _started(
    node: str,
    log_format: config.LogFormat,
    run: Callable[[threading.Event], None],
    *,
    last: Callable[[], None] = lambda: None,
) -> None:
    from brewctl import lifecycle, log

    log.configure(node=node, as_json=log_format is config.LogFormat.JSON, verbose=output.verbose)
    lifecycle.collect_garbage_rarely()
    with lifecycle.stop_on_signals(last) as stop:
        run(stop)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    serve = typer.Typer(help="Run a replica of a gRPC service.", no_args_is_help=True)
    serve.command(epilog="Example: brewctl serve order --node order-1 --port 50081")(order)
    app.add_typer(serve, name="serve")
    app.command(epilog="Example: brewctl publish --node publisher-1")(publish)
    consume = typer.Typer(cls=_Consumers, help=_CONSUME, invoke_without_command=True)
    consume.callback(epilog="Example: brewctl consume")(configured)
    for name in config.SHORT_NAMES:
        said = f"Run a replica of {name}, in the group of that name.\n\nCtrl-C drains it."
        consume.command(name, help=said, epilog=f"Example: brewctl consume {name} --node {name}-1")(_own(name))
    consume.command(_ANY, epilog="Example: brewctl consume loyalty:points --node loyalty-1")(downstream)
    app.add_typer(consume, name="consume")
