"""The result of a check."""

from dataclasses import dataclass
from enum import StrEnum

from brewctl.errors import BrewError


class Verdict(StrEnum):
    """ok; warn: the flow works, but needs attention; fail: part of the flow does not work, or may lose data."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `brewctl doctor`. `mend` says how to fix it, like a BrewError's hint; empty if the verdict is ok."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Finding:
    """Make a finding with the verdict ok."""
    return Finding(check, Verdict.OK, found)


def warn(check: str, found: str, *, mend: str) -> Finding:
    """Make a warning."""
    return Finding(check, Verdict.WARN, found, mend)


def fail(check: str, found: str, *, mend: str) -> Finding:
    """Make a failure."""
    return Finding(check, Verdict.FAIL, found, mend)


def failed(check: str, error: BrewError) -> Finding:
    """Make a failure of an error's message and hint."""
    return fail(check, error.message, mend=error.hint)
