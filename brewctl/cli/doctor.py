"""`brewctl doctor`: check this machine and the servers, and say how to fix what is wrong."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from brewctl import config
from brewctl.cli import options, output
from brewctl.errors import BrewError, ExitCode, UsageError

if TYPE_CHECKING:
    from brewctl.doctor import Finding

_WIDTH = 80
_NAME = 20
_COMMAND = re.compile(r"`[^`]{1,70}`")
_NO_BREAK = "\N{NO-BREAK SPACE}"
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    as_json: options.AsJson = False,
    addr: options.Addr = None,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Check machine and servers, and say how to fix each failure.

    Changes nothing. Exit 1 where a check fails.
    """
    from brewctl.doctor import Verdict, examine

    findings = examine(_settings(database_url, brokers, topic, addr, downstream), config.home())
    shown = list(findings) if as_json else _show(findings)
    ok = all(finding.verdict is not Verdict.FAIL for finding in shown)
    if as_json:
        from dataclasses import asdict

        output.emit_json({"ok": ok, "findings": [asdict(finding) for finding in shown]})
    else:
        output.emit(_summary(shown))
    if not ok:
        raise typer.Exit(ExitCode.FAILED)


def _settings(
    database_url: str | None,
    brokers: str | None,
    topic: str | None,
    addr: list[str] | None,
    downstreams: list[str] | None,
) -> config.Settings | None:
    """Return the settings; None if they depend on the sandbox's state file, and that is damaged."""
    try:
        settings = options.settings(
            database_url=database_url,
            brokers=brokers,
            topic=topic,
            order_addrs=",".join(addr or []),
            downstreams=downstreams,
        )
    except UsageError:
        raise
    except BrewError:
        return None
    from brewctl.delivery import database

    database.place(settings.database_url)  # raises UsageError for a malformed URL
    return settings


def _show(findings: "Iterable[Finding]") -> "list[Finding]":
    """Print each finding as it comes; return all of them."""
    from rich.console import Console
    from rich.text import Text

    console, shown = Console(highlight=False), []
    for finding in findings:
        shown.append(finding)
        first, *more = _lines(finding)
        with console.capture() as drawn:
            console.print(Text.assemble((first[:4], _STYLES[finding.verdict]), first[4:]), soft_wrap=True)
        output.emit("\n".join([drawn.get().rstrip("\n"), *more]))
    return shown


def _lines(finding: "Finding") -> list[str]:
    """Format a finding within 80 columns: verdict, check, what was found; below it how to fix it."""
    head = f"{finding.verdict:<4}  {finding.check + ' ':<{_NAME}}"
    lines = _wrapped(output.plain(finding.found), first=head, rest=" " * len(head))
    if finding.mend:
        lines += _wrapped(output.plain(finding.mend), first=f"{'→':>7} ", rest=" " * 8)
    return lines


def _wrapped(text: str, *, first: str, rest: str) -> list[str]:
    # A command that fits into a line is not broken, so that the user can copy it.
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(whole, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _summary(findings: "Iterable[Finding]") -> str:
    counted = Counter(str(finding.verdict) for finding in findings)
    warnings = f"{counted['warn']} warning{'' if counted['warn'] == 1 else 's'}"
    failures = f"{counted['fail']} failure{'' if counted['fail'] == 1 else 's'}"
    return f"{counted['ok']} ok, {warnings}, {failures}"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl doctor --addr 127.0.0.1:50081 --addr 127.0.0.1:50082")(doctor)
