"""The options of a downstream that notifies customers over a channel: the log or a webhook."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from brewctl import config
from brewctl.errors import UsageError

_PANEL = "Webhook"
URL = "BREW_WEBHOOK_URL"
TIMEOUT, CONCURRENCY = "BREW_WEBHOOK_TIMEOUT", "BREW_WEBHOOK_CONCURRENCY"
UNSIGNED, PLAIN_HTTP = "BREW_WEBHOOK_UNSIGNED", "BREW_WEBHOOK_PLAIN_HTTP"

Channel = Annotated[
    config.Channel,
    typer.Option("--channel", help="How customers are notified.", envvar=config.CHANNEL_VARIABLE),
]
Url = Annotated[
    str,
    typer.Option(
        "--url",
        help=rf"URL that the webhook calls. \[env: {URL}]",
        metavar="URL",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        help=rf"Seconds that a call may take. \[env: {TIMEOUT}] \[default: 5]",
        metavar="SECONDS",
        min=0.1,
        max=60,
        rich_help_panel=_PANEL,
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        help=rf"Calls of this node at the same time. \[env: {CONCURRENCY}] \[default: 16]",
        metavar="N",
        min=1,
        max=256,
        rich_help_panel=_PANEL,
    ),
]
Unsigned = Annotated[
    bool, typer.Option("--unsigned", help="Send without a signature.", envvar=UNSIGNED, rich_help_panel=_PANEL)
]
PlainHttp = Annotated[
    bool,
    typer.Option("--plain-http", help="Allow http:// to other machines.", envvar=PLAIN_HTTP, rich_help_panel=_PANEL),
]


@dataclass(frozen=True)
class Chosen:
    """The values of the channel's options."""

    channel: config.Channel
    url: str
    timeout: float | None
    concurrency: int | None
    unsigned: bool
    plain_http: bool

    def settle(self) -> None:
        """Set the variables that the channel's code reads to these values. Raises UsageError."""
        if self.channel is not config.Channel.WEBHOOK and self.url:
            raise UsageError("--url is given without --channel webhook", hint="add it")
        given = {
            config.CHANNEL_VARIABLE: self.channel.value,
            URL: self.url,
            TIMEOUT: "" if self.timeout is None else f"{self.timeout:g}",
            CONCURRENCY: "" if self.concurrency is None else str(self.concurrency),
            UNSIGNED: "1" if self.unsigned else "",
            PLAIN_HTTP: "1" if self.plain_http else "",
        }
        if self.url:
            os.environ.pop(f"{URL}_FILE", None)
        os.environ.update({name: value for name, value in given.items() if value})
