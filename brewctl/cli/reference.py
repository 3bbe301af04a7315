"""What every command says of itself: the variables that it reads, in its help; and docs/cli.md, made of all help.

`python -m brewctl.cli.reference` prints that page, so that it can't drift: a test compares the two.
"""

import inspect
import re
from collections.abc import Iterator

import typer.core
import typer.main

from brewctl import config

Command = typer.core.TyperCommand | typer.core.TyperGroup

# Read by every command: where the sandbox's state is.
_HOME = "BREW_HOME"
# Where the sandbox's parts come from, and where they are kept.
_DOWNLOADS = ("BREW_MAVEN_REPOSITORY", "XDG_CACHE_HOME")
# What a command reads beside the variables of its options.
_PREFIX = "BREW_GROUP_PREFIX"  # of the groups of the downstreams
_CLIENT = "BREW_KAFKA_CLIENT"
_TRACES = "OTEL_*"  # of OpenTelemetry: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
_SPANS = (_TRACES, "BREW_TRACE_PARENT")  # of roles that have events' effects
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
_INTRODUCTION = """\
# Commands

What `brewctl COMMAND --help` says, as one page; `make docs` writes it anew.

A flag wins over its variable, that over the running sandbox, that over the default. Results are on stdout, notes and
errors on stderr; colours and live views only in a terminal, and no colours where `NO_COLOR` is set. Exit codes: 0 done,
1 what was asked failed, 2 wrong usage, 3 a server can't be reached, 130 interrupted.
`BREW_KAFKA_CLIENT` chooses the library that sends and reads: `kafka-python-ng`, the default, or `librdkafka`, which
takes a fraction of the CPU and is installed by `pip install 'brewctl[librdkafka]'`; topics and groups are administered
by the first in either case.
Roles send traces where the standard variables of OpenTelemetry name a receiver, such as
`OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318`, after `pip install 'brewctl[otel]'`. `BREW_TRACE_PARENT=1` gives
each event a span of its own, below that of the call that created it.
Secrets are never arguments. Each is also read of a file, at every connection anew: `BREW_DATABASE_URL_FILE` (all of the
URL), `BREW_DATABASE_PASSWORD` or `…_FILE` for a URL without a password, and `BREW_<GROUP>_DATABASE_URL_FILE`. Kafka is
talked to as `BREW_KAFKA_SECURITY_PROTOCOL` says, `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`, by
`BREW_KAFKA_SASL_MECHANISM` (`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`), `BREW_KAFKA_USERNAME`, `BREW_KAFKA_PASSWORD` or
`…_FILE`, `BREW_KAFKA_CA_FILE`, `BREW_KAFKA_CERT_FILE`, `BREW_KAFKA_KEY_FILE`, `BREW_KAFKA_KEY_PASSWORD` or `…_FILE`.
`brewctl --install-completion` completes commands, options, nodes, groups and order ids in your shell.
"""


def walk(command: Command, *words: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield every command below this one with the words that call it, groups before what is in them."""
    for name, child in getattr(command, "commands", {}).items():
        yield (*words, name), child
        yield from walk(child, *words, name)


def complete(root: Command) -> None:
    """Let the help of every command name the variables that it reads, and wrap where the terminal ends.

    Typer keeps the line breaks of a docstring within its paragraphs.
    """
    for words, command in walk(root):
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n"))
        if not isinstance(command, typer.core.TyperGroup) or command.epilog:
            names = ", ".join(environment(words, command))
            command.epilog = f"{command.epilog}\n\nEnvironment: {names}"


def environment(words: tuple[str, ...], command: Command) -> list[str]:
    """Name the variables that a command reads."""
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


def page(root: Command) -> str:
    """Write the page, in Markdown."""
    return "\n\n".join([_INTRODUCTION, *(_section(words, command) for words, command in walk(root))]) + "\n"


def _section(words: tuple[str, ...], command: Command) -> str:
    name = f"brewctl {' '.join(words)}"
    context = typer.Context(command, info_name=name)
    parts = [f"#{'#' * len(words)} {name}", inspect.cleandoc(command.help or "")]
    records = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    if example := (command.epilog or "").partition("Example: ")[2]:
        parts.append(f"    {' '.join(command.get_usage(context).partition('Usage: ')[2].split())}")
        if records:
            parts.append("\n".join(["| option | what it does |", "|---|---|", *(_row(*record) for record in records)]))
        example, _, variables = example.partition("\n\n")
        parts += [f"Example: `{example}`", variables]
    return "\n\n".join(part for part in parts if part)


def _row(names: str, text: str) -> str:
    """Write an option. Rich's escapes are its own, and a bar would end the cell."""
    plain = " ".join(text.replace("\\[", "[").split())
    cells = [cell.replace("|", "\\|") for cell in (f"`{names}`", plain)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the page."""
    from brewctl.cli.main import root_command

    print(page(root_command()), end="")


if __name__ == "__main__":
    main()
