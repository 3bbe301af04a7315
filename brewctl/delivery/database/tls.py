"""Explains why a TLS connection to PostgreSQL failed. Imported only after that.

libpq's message is the same for every certificate that it refuses, so the certificate is fetched once more to see why.
"""

import contextlib
import os
import re
import socket
import ssl
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brewctl.config import Settings
from brewctl.delivery.certificate_faults import fault
from brewctl.delivery.database.session import explicit, server
from brewctl.errors import UsageError

_ANSWER_S = 2.0
_ASK_FOR_TLS = struct.pack(">ii", 8, 80877103)
_FILE = re.compile(
    r"(?:could not \w+ |certificate does not match |certificate present, but not )?"
    r'(?:root certificate|certificate|private key|server CRL) file ".*'
)
# A part of libpq's or the server's message, our reason, and the hint. The first match counts.
_REFUSALS = (
    ("does not support ssl", "speaks no TLS", "set `ssl = on` there, or take sslmode out of {variable}"),
    ("does not match host name", "has a certificate for another host name", "connect by a name that is in it"),
    ("requires a valid client certificate", "wants a client certificate", "add sslcert=FILE&sslkey=FILE to {variable}"),
    ("certificate authentication failed", "refused the client certificate", "it must be for the user in {variable}"),
    ("alert unknown ca", "refused the client certificate", "the server must trust the authority that signed it"),
    ("alert certificate", "refused the client certificate", "it must be valid, and of an authority the server trusts"),
    ("no encryption", "wants TLS", "add sslmode=verify-full&sslrootcert=FILE to {variable}"),
    ("no pg_hba.conf entry", "does not admit this user from this address", "add a line to its pg_hba.conf"),
)


def of_file(error: Exception, variable: str) -> UsageError | None:
    """Return the error of a certificate or key file that libpq can't use; None where the error is another one.

    `variable`: where the file is named, for the message.
    """
    if not (found := _FILE.search(str(error))):
        return None
    said, _, more = found[0].partition("; ")
    hint = "chmod 600 it" if "group or world access" in said else "correct it, or the file"
    return UsageError(f"{variable}: {said}{f' ({more})' if hint.startswith('chmod') else ''}", hint=hint)


def refusal(error: Exception, settings: Settings, variable: str) -> tuple[str, str] | None:
    """Return the reason of an error and a hint; None where the error is not about TLS."""
    text = str(error)
    if "certificate verify failed" in text:
        return _certificate(settings)
    for mark, reason, hint in _REFUSALS:
        if mark in text.lower():
            return reason, hint.format(variable=variable)
    return None


def _certificate(settings: Settings) -> tuple[str, str]:
    given = explicit(server(settings.database_url, settings.database_security))
    authorities = str(given.get("sslrootcert") or os.environ.get("PGSSLROOTCERT") or "~/.postgresql/root.crt")
    wrong: tuple[str, str] | None = None
    with contextlib.suppress(OSError, ValueError):
        try:
            _shake_hands(given, authorities)
        except ssl.SSLCertVerificationError as error:
            wrong = fault(error, authorities=authorities)
    why, hint = wrong or ("is not trusted", f"put the authority that signed it into {authorities}")
    return f"has a certificate that {why}", hint


def _shake_hands(given: Mapping[str, Any], authorities: str) -> None:
    """Begin a TLS handshake, which verifies the certificate, and close. Raises ssl.SSLError or OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # libpq itself reports a wrong host name
    if authorities == "system":
        context.load_default_certs()
    else:
        context.load_verify_locations(Path(authorities).expanduser())
    host = str(given.get("hostaddr") or given.get("host") or os.environ.get("PGHOST") or "localhost").split(",")[0]
    port = int(str(given.get("port") or os.environ.get("PGPORT") or 5432).split(",")[0])
    with socket.create_connection((host, port), timeout=_ANSWER_S) as plain:
        plain.sendall(_ASK_FOR_TLS)
        if plain.recv(1) == b"S":
            context.wrap_socket(plain, server_hostname=host).close()
