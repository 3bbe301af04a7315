"""Generate docs/cli.md from the commands' help: `python -m brewctl.cli.reference` prints it."""

import inspect

import typer

from brewctl.cli.environment import Command, walk
from brewctl.cli.main import root_command

_INTRODUCTION = """\
# Commands

The help of all commands, as one page. `make docs` generates it.

A flag overrides its variable, the variable the running sandbox, and that the default. Results are on stdout, notes and
errors on stderr; colours and live views only in a terminal, and no colours where `NO_COLOR` is set. Exit codes: 0 done,
1 the command failed, 2 wrong usage, 3 a server can't be reached, 130 interrupted.
`BREW_KAFKA_CLIENT` chooses the library that sends and reads: `kafka-python-ng`, the default, or `librdkafka`, which
takes a fraction of the CPU and is installed by `pip install 'brewctl[librdkafka]'`. kafka-python-ng administers topics
and groups in either case.
Roles send traces if the standard variables of OpenTelemetry name a receiver, such as
`OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318`, after `pip install 'brewctl[otel]'`. `BREW_TRACE_PARENT=1` gives
each event a span of its own, below that of the call that created it.
Secrets are never arguments. Each can also be in a file, which is read again for every connection:
`BREW_DATABASE_URL_FILE` (the whole URL), `BREW_DATABASE_PASSWORD` or `…_FILE` for a URL without a password, and
`BREW_<GROUP>_DATABASE_URL_FILE`. Connections to Kafka are set by `BREW_KAFKA_SECURITY_PROTOCOL` (`PLAINTEXT`, `SSL`,
`SASL_PLAINTEXT` or `SASL_SSL`), `BREW_KAFKA_SASL_MECHANISM` (`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`),
`BREW_KAFKA_USERNAME`, `BREW_KAFKA_PASSWORD` or `…_FILE`, `BREW_KAFKA_CA_FILE`, `BREW_KAFKA_CERT_FILE`,
`BREW_KAFKA_KEY_FILE`, `BREW_KAFKA_KEY_PASSWORD` or `…_FILE`.
`brewctl --install-completion` completes commands, options, nodes, groups and order ids in your shell.
"""


def page(root: Command) -> str:
    """Return the page, in Markdown."""
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
    """Return an option's table row: without Rich's escapes, and with bars escaped, which would end the cell."""
    plain = " ".join(text.replace("\\[", "[").split())
    cells = [cell.replace("|", "\\|") for cell in (f"`{names}`", plain)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the page."""
    print(page(root_command()), end="")


if __name__ == "__main__":
    main()
