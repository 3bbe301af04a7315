"""The log lines of the tracing library, in our log: at most one a minute about spans that can't be sent.

The library logs a failure every few seconds while the endpoint can't be reached.
"""

import logging
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

from brewctl import log

logger = log.get(__name__)

_LIBRARY = "opentelemetry"
_EXPORT = ("opentelemetry.exporter.", "opentelemetry.sdk._shared_internal", "opentelemetry.sdk.trace.export")
# This logger quotes the parts of OTEL_EXPORTER_OTLP_HEADERS that it can't read. They may hold tokens.
_QUOTES_HEADERS = "opentelemetry.util.re"
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_USER = re.compile(r"//[^/\s]*@")  # user and password before a host
_HINT = "orders go on; spans that can't be sent are dropped: see that the OTLP endpoint answers"
_LONGEST = 300

seldom = log.Seldom(logger, "traces_not_sent", every_s=60.0)


def lost(reason: str) -> None:
    """Log that spans are not sent, at most once a minute."""
    seldom.warn(reason=reason, hint=_HINT)


def redacted(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a message without secrets: the values of the headers, and a user and password before a host."""
    pairs = [pair for name in _HEADERS for pair in environ.get(name, "").split(",")]
    values = {pair.partition("=")[2].strip() for pair in pairs}
    values |= {form for value in values for form in (unquote(value), repr(unquote(value))[1:-1])}
    for value in sorted(filter(None, values), key=len, reverse=True):
        text = text.replace(value, "***")
    return _USER.sub("//***@", text)


def take_over() -> None:
    """Handle the library's log records here from now on."""
    library = logging.getLogger(_LIBRARY)
    library.propagate = False
    library.handlers[:] = [_Handler(logging.WARNING)]


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _QUOTES_HEADERS:
            logger.warning("traces_setting", reason="OTEL_EXPORTER_OTLP_HEADERS is not name=value,name=value")
            return
        said = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            said = f"{said} {log.reason(record.exc_info[1])}"
        said = " ".join(redacted(said).split())
        if record.name.startswith(_EXPORT):
            lost(said[:_LONGEST])
        else:
            logger.warning("traces_setting", reason=said[:_LONGEST])
