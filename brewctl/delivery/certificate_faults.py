"""Explains why a server's certificate was refused, with a hint. Imported only after that."""

import ssl
from typing import Any

from brewctl import certificates

_ANOTHER_NAME = "connect by a name that is in it, or give the server one with this name"
_FAULTS = {
    certificates.TOO_EARLY: ("is not valid yet", "compare this machine's clock with the server's"),
    certificates.EXPIRED: ("has expired", "give the server a new certificate"),
    certificates.OTHER_NAME: ("is for another host name", _ANOTHER_NAME),
    certificates.OTHER_ADDRESS: ("is for another IP address", _ANOTHER_NAME),
}


def fault(error: ssl.SSLCertVerificationError, *, authorities: str) -> tuple[str, str]:
    """Return what is wrong with a certificate, and a hint. `authorities`: the file of trusted authorities."""
    untrusted = f"put the authority that signed it into {authorities}"
    return _FAULTS.get(error.verify_code, (f"is not trusted ({told(error)})", untrusted))


def told(error: Any) -> str:
    """Return OpenSSL's or the server's message as a few lower-case words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message).lower().removesuffix(".")
    if isinstance(error, ssl.SSLError):
        return certificates.reason(error)
    text = " ".join(str(error).split())
    return (text[:1].lower() + text[1:]).removesuffix(".")[:200]
