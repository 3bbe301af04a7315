"""Traces, by OpenTelemetry: on where the standard OTEL_* variables name an exporter, else nothing of it is imported.

    Create's span ──its traceparent──► outbox row ──► record's header
         ▲                                 ▲              ▲
         │                                 └─ link ─ send │ one span a batch
      caller                                              └─ link ─ process, one span a try of a batch

The roles ask `in_force` once, when they are built, and take the traced form of what they are made of: where no traces
are wanted, the same instructions run as without this package.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from brewctl import log
from brewctl.errors import UsageError
from brewctl.tracing import lines

if TYPE_CHECKING:
    from brewctl.tracing.spans import Tracing

logger = log.get(__name__)

PARENT = "BREW_TRACE_PARENT"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})

_in_force: "Tracing | None" = None


class TracesOffError(Exception):
    """Traces are wanted, and can't be made. The role runs without them: these variables are often set for all."""

    def __init__(self, reason: str, *, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def wanted(environ: Mapping[str, str]) -> bool:
    """Say whether the environment asks for traces."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter or any(environ.get(name, "").strip() for name in _ENDPOINTS))


def in_force() -> "Tracing | None":
    """Return what makes the spans of this process; None where no traces are wanted."""
    return _in_force


def current_traceparent() -> str | None:
    """Return the traceparent of what this thread is at; None where no traces are wanted, or it is at nothing."""
    return _in_force.current_traceparent() if _in_force else None


@contextlib.contextmanager
def using(tracing: "Tracing") -> Iterator[None]:
    """Make spans with it while the block runs: whoever is built in it is traced."""
    global _in_force  # noqa: PLW0603 - one a process, as the library's own provider is
    before, _in_force = _in_force, tracing
    try:
        yield
    finally:
        _in_force = before


@contextlib.contextmanager
def kept(service: str, *, node: str, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Trace a role while the block runs, if the environment asks for it. `service`: its name where none is set.

    The last spans are sent on the way out, for a bounded time. Raises UsageError for a BREW_TRACE_PARENT that is
    neither yes nor no; for the standard variables that can't be used there is a line in the log.
    """
    by_parent = _flag(environ)
    with contextlib.ExitStack() as own:
        if wanted(environ):
            try:
                from brewctl.tracing import sdk  # noqa: PLC0415 - the library is imported only here

                tracing, close = sdk.opened(service, node=node, environ=environ, by_parent=by_parent)
            except ModuleNotFoundError as error:
                hint = "pip install 'brewctl[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT"
                logger.warning("traces_off", reason=f"{error.name} is not installed", hint=hint)
            except TracesOffError as error:
                logger.warning("traces_off", reason=str(error), hint=error.hint)
            except Exception as error:  # noqa: BLE001 - whatever it is: orders go on without traces
                reason = lines.redacted(log.reason(error))
                logger.warning("traces_off", reason=reason, hint="correct the OTEL_* variables")
            else:
                own.callback(close)
                own.enter_context(using(tracing))
        yield


def _flag(environ: Mapping[str, str]) -> bool:
    said = environ.get(PARENT, "").strip().lower()
    if said not in _YES | _NO:
        raise UsageError(f"{PARENT} is {said[:80]!r}", hint="set it to 1 for one span an event, below its order's")
    return said in _YES
