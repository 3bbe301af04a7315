"""`brewctl serve order` and `brewctl publish`: run one replica in the foreground."""

import functools
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewctl import config
from brewctl.cli import options, output
from brewctl.cli.playing import Play
from brewctl.errors import UsageError

if TYPE_CHECKING:
    from brewctl.probes.health import Health
    from brewctl.roles.listening import Security

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
    _file("--tls-key", text="Key of the certificate, PEM, without a password.", variable="BREW_SERVE_TLS_KEY_FILE"),
]
ClientCaFile = Annotated[
    str | None,
    _file(
        "--tls-client-ca",
        text="Accept only clients with a certificate of these authorities, PEM.",
        variable="BREW_SERVE_TLS_CLIENT_CA_FILE",
    ),
]
TokensFile = Annotated[
    str | None,
    _file(
        "--tokens",
        text="Accept only calls with a bearer token from this file: lines TENANT TOKEN, or TENANT sha256:DIGEST.",
        variable="BREW_SERVE_TOKENS_FILE",
    ),
]


def order(
    node: options.Node = "",
    port: Annotated[int, typer.Option(help="Port for gRPC; 0 takes a free one.", min=0, max=65535)] = 50081,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(help="Processes that share the port, to use more cores.", min=1, max=64)] = 1,
    no_publisher: Annotated[
        bool, typer.Option("--no-publisher", help="Leave publishing to `brewctl publish`.")
    ] = False,
    wait: options.Wait = 0,
    tls_cert: CertificateFile = None,
    tls_key: KeyFile = None,
    tls_client_ca: ClientCaFile = None,
    tokens: TokensFile = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other machines to connect without TLS.", rich_help_panel=_SECURITY)
    ] = False,
    log_format: options.Format = config.LogFormat.LOGFMT,
    http: options.Http = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run a replica of order-service, with its outbox publisher.

    Ctrl-C drains it. The files for TLS and tokens are read again when they change, without a restart.
    """
    from brewctl.roles.listening import Security

    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    if not (tls_cert or tls_key or insecure or settings.configured & {"database_url", "brokers"}):
        from brewctl.sandbox import state

        tls_cert, tls_key = state.serving(config.home()) or (None, None)
    security = Security(tls_cert, tls_key, tls_client_ca, tokens, insecure)
    security.check(host)
    play = Play(node, log_format, http, wait)
    node = play.named("order")
    if workers > 1:
        _supervise(play, settings, host=host, port=port, count=workers, publishes=not no_publisher, security=security)
        return
    from brewctl import lifecycle
    from brewctl.roles import order as role
    from brewctl.roles.workers import await_go

    listen = functools.cache(lifecycle.stop_at_end_of_input)  # only once, however often the start is retried

    def run(node: str, stop: threading.Event, health: "Health") -> None:
        told = listen(stop) if worker else None
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

    play.role("order", node, run, is_worker=worker)


def publish(
    node: options.Node = "",
    wait: options.Wait = 0,
    log_format: options.Format = config.LogFormat.LOGFMT,
    http: options.Http = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
) -> None:
    """Run a replica that only publishes the outbox's rows.

    For the rows of `serve order --no-publisher`, and of services that add events in SQL, with outbox_add().

    Several can run at the same time, also beside order-services that publish. Ctrl-C drains it.
    """
    settings = options.settings(database_url=database_url, brokers=brokers)
    from brewctl.roles import publisher as role

    def run(node: str, stop: threading.Event, health: "Health") -> None:
        role.run(settings, stop, node=node, health=health)

    play = Play(node, log_format, http, wait)
    play.role("publisher", play.named("publisher"), run)


def _supervise(
    play: Play,
    settings: config.Settings,
    *,
    host: str,
    port: int,
    count: int,
    publishes: bool,
    security: "Security",
) -> None:
    node = play.named("order")
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
        log_format=play.log_format,
        verbose=output.verbose,
        publishes=publishes,
        wait_s=play.wait_s,
        security=security,
        http=play.where,
    )
    play.until_stopped(node, workers.run, last=workers.kill)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    serve = typer.Typer(help="Run a replica of a gRPC service.", no_args_is_help=True)
    serve.command(epilog="Example: brewctl serve order --node order-1 --port 50081")(order)
    app.add_typer(serve, name="serve")
    app.command(epilog="Example: brewctl publish --node publisher-1")(publish)
