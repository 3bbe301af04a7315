"""The environment variables that each command reads, for its help."""

import re
from collections.abc import Iterator

import typer.core

from brewctl import config

Command = typer.core.TyperCommand | typer.core.TyperGroup

# Every command reads it: the folder with the sandbox's state.
_HOME = "BREW_HOME"
# The mirror from which the sandbox's parts are downloaded, and the cache folder.
_DOWNLOADS = ("BREW_MAVEN_REPOSITORY", "XDG_CACHE_HOME")
# Variables that a command reads in addition to those of its options.
_PREFIX = "BREW_GROUP_PREFIX"  # put before the names of consumer groups in Kafka
_CLIENT = "BREW_KAFKA_CLIENT"
_TRACES = "OTEL_*"  # of OpenTelemetry: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
_SPANS = (_TRACES, "BREW_TRACE_PARENT")  # of roles that process events
_MORE = {
    "bench": _DOWNLOADS,
    **{f"consume {name}": (_PREFIX, *_SPANS) for name in config.SHORT_NAMES},
    f"consume {config.WITH_CHANNELS}": (_PREFIX, *_SPANS, "BREW_WEBHOOK_SECRET", "BREW_WEBHOOK_SECRET_FILE"),
    "consume MODULE:NAME": _SPANS,
    "serve order": (_TRACES,),
    "publish": (_TRACES,),
    "dlq list": (_PREFIX,),
    "dlq redrive": (_PREFIX,),
    "dlq drop": (_PREFIX,),
    "start": ("BREW_SESSION_TIMEOUT", _PREFIX, *_SPANS),
    "verify": (_PREFIX,),
    "chaos": ("BREW_DATABASE_URL", "BREW_KAFKA_BROKERS", "BREW_TOPIC", _PREFIX, *_DOWNLOADS),
    "create-order": ("BREW_DATABASE_URL", "BREW_KAFKA_BROKERS", "BREW_TOPIC"),
    "demo": _DOWNLOADS,
    "doctor": ("BREW_JAVA", "XDG_CACHE_HOME"),
    "up": _DOWNLOADS,
}


def walk(command: Command, *words: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield every command below this one with its words; a group before its commands."""
    for name, child in getattr(command, "commands", {}).items():
        yield (*words, name), child
        yield from walk(child, *words, name)


def complete(root: Command) -> None:
    """Add the variables that each command reads to its help, and let its paragraphs wrap at the terminal's width.

    Typer would keep the docstring's line breaks.
    """
    for words, command in walk(root):
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n"))
        if not isinstance(command, typer.core.TyperGroup) or command.epilog:
            names = ", ".join(environment(words, command))
            command.epilog = f"{command.epilog}\n\nEnvironment: {names}"


def environment(words: tuple[str, ...], command: Command) -> list[str]:
    """Return the names of the variables that a command reads, sorted."""
    names = {_HOME, *_MORE.get(" ".join(words), ())}
    for parameter in command.params:
        names.update(re.findall(r"\[env: (\w+)\]", getattr(parameter, "help", None) or ""))
        named = parameter.envvar or ()
        names.update([named] if isinstance(named, str) else named)
    if {"BREW_DOWNSTREAMS", "BREW_KAFKA_BROKERS"} <= names:
        names.add(_PREFIX)
    if "BREW_KAFKA_BROKERS" in names:
        names |= {_CLIENT, "BREW_KAFKA_SECURITY_PROTOCOL"}
    if "BREW_DATABASE_URL" in names:
        names |= {"BREW_DATABASE_PASSWORD_FILE", "BREW_DATABASE_URL_FILE"}
    return sorted(names)
