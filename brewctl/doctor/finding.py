"""What a check found."""

from dataclasses import dataclass
from enum import StrEnum

from brewctl.errors import BrewError


class Verdict(StrEnum):
    """How it is: as it must be, so that it will do, or so that something of the flow can't work or be trusted."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a doctor. `mend` is what mends it, as a BrewError's hint; empty where the verdict is ok."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, found)


def warn(check: str, found: str, *, mend: str) -> Finding:
    """Worth a look."""
    return Finding(check, Verdict.WARN, found, mend)


def fail(check: str, found: str, *, mend: str) -> Finding:
    """In the way."""
    return Finding(check, Verdict.FAIL, found, mend)


def failed(check: str, error: BrewError) -> Finding:
    """In the way, as the error says."""
    return fail(check, error.message, mend=error.hint)
