"""`brewctl consume …`: run a replica of a downstream in the foreground, or list the configured downstreams."""

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from brewctl import config
from brewctl.cli import channel, options, output
from brewctl.cli.playing import Play
from brewctl.errors import UsageError
from brewctl.limits import Limits

if TYPE_CHECKING:
    from brewctl.probes.health import Health

Session = Annotated[
    float,
    typer.Option(
        help="Seconds of silence after which Kafka gives this node's partitions to others.",
        envvar="BREW_SESSION_TIMEOUT",
        min=3,
        max=300,
    ),
]

_ANY = "MODULE:NAME"
_CONSUME = "Run a consumer, or list the configured ones."


class _Consumers(typer.core.TyperGroup):
    """Takes any word that is no command for a downstream of the user's own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the first word, its command, and the arguments."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return args[0], self.commands[_ANY], args[1:]


def configured(ctx: typer.Context) -> None:
    """Run a consumer, or list the configured ones."""
    if ctx.invoked_subcommand:
        return
    from brewctl.delivery import registry

    names = options.configured_downstreams()
    rows = [(config.short_name(name), registry.find(name)) for name in names]
    width = max((len(name) for name, _ in rows), default=0)
    for name, found in rows:
        output.emit(f"{name:<{width}}  group {found.group}, takes {', '.join(found.events)}")
    output.note("next: brewctl consume NAME, or MODULE:NAME for one of your own")


def _own(name: str) -> Callable[..., None]:
    """Return the command of one of the story's own downstreams."""

    def run(
        node: options.Node = "",
        session_timeout: Session = Limits.session_s,
        wait: options.Wait = 0,
        log_format: options.Format = config.LogFormat.LOGFMT,
        http: options.Http = "",
        database_url: options.DatabaseUrl = None,
        brokers: options.Brokers = None,
        topic: options.Topic = None,
    ) -> None:
        settings = options.settings(
            database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
        )
        _consume(name, settings, Play(node, log_format, http, wait))

    return run


def _with_channels(name: str) -> Callable[..., None]:
    """Return the command of the downstream that notifies customers."""

    def run(
        node: options.Node = "",
        how: channel.Channel = config.Channel.LOG,
        url: channel.Url = "",
        timeout: channel.Timeout = None,
        concurrency: channel.Concurrency = None,
        unsigned: channel.Unsigned = False,
        plain_http: channel.PlainHttp = False,
        session_timeout: Session = Limits.session_s,
        wait: options.Wait = 0,
        log_format: options.Format = config.LogFormat.LOGFMT,
        http: options.Http = "",
        database_url: options.DatabaseUrl = None,
        brokers: options.Brokers = None,
        topic: options.Topic = None,
    ) -> None:
        channel.Chosen(how, url, timeout, concurrency, unsigned, plain_http).settle()
        settings = options.settings(
            database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
        )
        _consume(name, settings, Play(node, log_format, http, wait))

    return run


def downstream(
    ctx: typer.Context,
    node: options.Node = "",
    app_dir: options.AppDir = "",
    watch: Annotated[bool, typer.Option("--watch", help="Restart it when its file changes.")] = False,
    session_timeout: Session = Limits.session_s,
    wait: options.Wait = 0,
    log_format: options.Format = config.LogFormat.LOGFMT,
    http: options.Http = "",
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Run a replica of a downstream of your own.

    The downstream is NAME in MODULE. It consumes in its own group.

    Its tables are in BREW_<GROUP>_DATABASE_URL where that is set. Ctrl-C drains it.
    """
    settings = options.settings(
        database_url=database_url, brokers=brokers, topic=topic, limits=_limits(session_timeout)
    )
    name, play = ctx.info_name or "", Play(node, log_format, http, wait)
    if watch:
        _consume_watched(name, app_dir, settings, play)
    else:
        _consume(name, settings, play, app_dir)


def _consume(name: str, settings: config.Settings, play: Play, app_dir: str = "") -> None:
    from brewctl.delivery import registry
    from brewctl.roles import consumer

    found = registry.find(name, app_dir)

    def run(node: str, stop: threading.Event, health: "Health") -> None:
        consumer.run(settings, found, stop, name=name, node=node, health=health)

    play.role(found.group, play.named(found.node or found.group), run)


def _consume_watched(name: str, app_dir: str, settings: config.Settings, play: Play) -> None:
    """Run a downstream until its file changes, then restart. If it can't be imported, wait for a change first."""
    from brewctl import log, signals
    from brewctl.delivery import registry
    from brewctl.roles import consumer, reloading

    files = reloading.Files(app_dir)
    try:
        found = registry.find(name, app_dir)
    except UsageError as error:
        output.note(output.plain(f"brewctl: {error}"))
        output.note("waits for a change of it …")
        with signals.stop_on_signals() as stop:
            again = reloading.await_change(files, stop)
    else:
        files.imported()
        changes = reloading.Changes()

        def run(node: str, stop: threading.Event, health: "Health") -> None:
            with reloading.watched(files, stop, changes):
                consumer.run(settings, found, stop, name=name, node=node, health=health)
            if changes.seen:
                log.say(node, "its file has changed: starts again")

        # A change of the file stops the role, but not this process: it restarts.
        play.role(found.group, play.named(found.node or found.group), run, leaves=False)
        again = changes.seen
    if again:
        reloading.restart()


def _limits(session_s: float) -> Limits:
    return dataclasses.replace(Limits(), session_s=session_s)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    consume = typer.Typer(cls=_Consumers, help=_CONSUME, invoke_without_command=True)
    consume.callback(epilog="Example: brewctl consume")(configured)
    for name in config.SHORT_NAMES:
        said = f"Run a replica of {name}, in the group of that name.\n\nCtrl-C drains it."
        make = _with_channels if name == config.WITH_CHANNELS else _own
        consume.command(name, help=said, epilog=f"Example: brewctl consume {name} --node {name}-1")(make(name))
    consume.command(_ANY, epilog="Example: brewctl consume loyalty:points --node loyalty-1")(downstream)
    app.add_typer(consume, name="consume")
