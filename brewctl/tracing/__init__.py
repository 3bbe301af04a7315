"""Traces by OpenTelemetry. They are on if the standard OTEL_* variables name an exporter; else nothing is imported.

    Create's span ──its traceparent──► outbox row ──► record's header
         ▲                                 ▲              ▲
         │                                 └─ link ─ send │ one span a batch
      caller                                              └─ link ─ process, one span a try of a batch

The roles call `in_force` once, when they are built, and use the traced forms of their parts if it returns something.
Without traces the roles run the same code as without this package.
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
    """Traces are on, but can't be set up. The role runs without them: a deployment often sets OTEL_* for everything."""

    def __init__(self, reason: str, *, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def wanted(environ: Mapping[str, str]) -> bool:
    """Return whether the environment turns traces on."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter or any(environ.get(name, "").strip() for name in _ENDPOINTS))


def in_force() -> "Tracing | None":
    """Return the object that makes the spans of this process; None if traces are off."""
    return _in_force


def current_traceparent() -> str | None:
    """Return the traceparent of this thread's current span; None without a span, or if traces are off."""
    return _in_force.current_traceparent() if _in_force else None


@contextlib.contextmanager
def using(tracing: "Tracing") -> Iterator[None]:
    """Make spans with `tracing` while the block runs: parts of a role that are built in the block are traced."""
    global _in_force  # noqa: PLW0603 - one for the process, as the library's own provider is
    before, _in_force = _in_force, tracing
    try:
        yield
    finally:
        _in_force = before


@contextlib.contextmanager
def kept(service: str, *, node: str, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Trace a role while the block runs, if the environment turns traces on.

    `service`: the service's name if the environment sets none. At the end the last spans are sent, for a bounded time.
    Raises UsageError for a BREW_TRACE_PARENT that is neither yes nor no; logs OTEL_* variables that can't be used.
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
            except Exception as error:  # noqa: BLE001 - an error of any kind must not stop the role
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
