"""`brewctl serve …`, `brewctl publish` and `brewctl consume …`: one replica of a role, in the foreground."""

import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Annotated

import typer

from brewctl import config
from brewctl.cli import options, output
from brewctl.errors import UsageError

Session = Annotated[
    float,
    typer.Option(
        help="Seconds of silence after which Kafka gives this node's partitions to others.",
        envvar="BREW_SESSION_TIMEOUT",
        min=3,
        max=300,
    ),
]


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
    log_format: options.Format = config.LogFormat.LOGFMT,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run a replica of order-service, with its outbox publisher.

    Ctrl-C drains it.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    node = node or f"order-{os.getpid()}"
    if workers > 1:
        _supervise(settings, node, log_format, host=host, port=port, count=workers, publishes=not no_publisher)
        return
    # The C core writes its own lines for what we report in ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from brewctl import lifecycle
    from brewctl.roles import order as role

    def run(node: str, stop: threading.Event) -> None:
        if worker:
            lifecycle.stop_at_end_of_input(stop)
        role.run(settings, stop, node=node, host=host, port=port, share_port=worker, publishes=not no_publisher)

    _play(node, log_format, run)


def publish(
    node: options.Node = "",
    log_format: options.Format = config.LogFormat.LOGFMT,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
) -> None:
    """Run a replica that only publishes the outbox's rows.

    For rows of `serve order --no-publisher`, and of services that add events in SQL, with outbox_add().

    Many run side by side, beside order-services that publish too. Ctrl-C drains it.
    """
    settings = options.settings(database_url=database_url, brokers=brokers)
    from brewctl.roles import publisher as role

    _play(node or f"publisher-{os.getpid()}", log_format, lambda node, stop: role.run(settings, stop, node=node))


def inventory(
    node: options.Node = "",
    session_timeout: Session = config.Limits.session_s,
    log_format: options.Format = config.LogFormat.LOGFMT,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Run a replica of inventory-service, in the group `inventory`.

    Ctrl-C drains it.
    """
    settings = options.settings(
        database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
    )
    from brewctl.roles import inventory as role

    _play(node or f"inventory-{os.getpid()}", log_format, lambda node, stop: role.run(settings, stop, node=node))


def notifications(
    node: options.Node = "",
    session_timeout: Session = config.Limits.session_s,
    log_format: options.Format = config.LogFormat.LOGFMT,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Run a replica of notification-service.

    In the group `notifications`. Ctrl-C drains it.
    """
    settings = options.settings(
        database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
    )
    from brewctl.roles import notifications as role

    _play(node or f"notification-{os.getpid()}", log_format, lambda node, stop: role.run(settings, stop, node=node))


def _supervise(
    settings: config.Settings,
    node: str,
    log_format: config.LogFormat,
    *,
    host: str,
    port: int,
    count: int,
    publishes: bool,
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
    )
    _play(node, log_format, lambda _node, stop: workers.run(stop), last=workers.kill)


def _limits(session_s: float) -> config.Limits:
    return dataclasses.replace(config.Limits(), session_s=session_s)


def _play(
    node: str, log_format: config.LogFormat, run: Callable[..., None], *, last: Callable[[], None] = lambda: None
) -> None:
    from brewctl import lifecycle, log

    log.configure(node=node, as_json=log_format is config.LogFormat.JSON, verbose=output.verbose)
    lifecycle.collect_garbage_rarely()
    with lifecycle.stop_on_signals(last) as stop:
        run(node, stop)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    serve = typer.Typer(help="Run a replica of a gRPC service.", no_args_is_help=True)
    serve.command(epilog="Example: brewctl serve order --node order-1 --port 50081")(order)
    app.add_typer(serve, name="serve")
    app.command(epilog="Example: brewctl publish --node publisher-1")(publish)
    consume = typer.Typer(help="Run a replica of a consumer.", no_args_is_help=True)
    consume.command(epilog="Example: brewctl consume inventory --node inventory-1")(inventory)
    consume.command(epilog="Example: brewctl consume notifications --node notification-1")(notifications)
    app.add_typer(consume, name="consume")
