"""Certificates and keys in PEM files: read as a whole, checked before use, and read again after a change."""

import contextlib
import os
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from brewctl.errors import UsageError

_LONGEST = 1024 * 1024
# OpenSSL's numbers for faults of a certificate: X509_V_ERR_….
TOO_EARLY, EXPIRED, WRONG_PURPOSE = 9, 10, 26
OTHER_NAME, OTHER_ADDRESS = 62, 64
# Rounds of the handshake in memory: it is over after two messages of each side.
_FLIGHTS = 3

_WARNED_S = 7 * 24 * 3600.0
_WARNED_SHARE = 0.1

Stamp = tuple[tuple[int, int, int] | None, ...]


class Named(NamedTuple):
    """A file, and the option or variable that set it, for messages."""

    option: str
    path: str

    def refusal(self, why: str, *, hint: str = "") -> UsageError:
        """Return the error about a fault of this file."""
        return UsageError(f"{self.option}: {self.path or repr('')} {why}", hint=hint)


class Pair(NamedTuple):
    """A certificate with its chain to the authority, and its key, as PEM."""

    chain: bytes
    key: bytes


class Lifetime(NamedTuple):
    """When a certificate is valid, in seconds since 1970. The times are None if it is not valid now."""

    begins: float | None = None
    ends: float | None = None
    expired: bool = False
    too_early: bool = False


def stamp(*paths: str) -> Stamp:
    """Return a value that changes when one of these files is written or replaced. Links are followed."""
    return tuple(_stamp(path) for path in paths)


def read(file: Named, *, longest: int = _LONGEST) -> bytes:
    """Read a file. It must be a regular one, because it is read again later. Raises UsageError."""
    try:
        # Without O_NONBLOCK the open of a pipe, such as <(…), would wait for its writer.
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise file.refusal("is no regular file", hint="it is read again when it changes: name one that stays")
            content = opened.read(longest + 1)
    except OSError as error:
        raise file.refusal(f"can't be read ({(error.strerror or str(error)).lower()})") from None
    except ValueError:
        raise file.refusal("is no file's name") from None
    if not content.strip():
        raise file.refusal("is empty")
    if len(content) > longest:
        raise file.refusal(f"is longer than {longest} bytes")
    return content


def authorities(file: Named) -> bytes:
    """Read the certificates of authorities, and check them. Raises UsageError."""
    content = read(file)
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), file, content)
    return content


def pair(certificate: Named, key: Named) -> Pair:
    """Read a certificate and its key, and check that they belong together. Raises UsageError."""
    found = Pair(read(certificate), read(key))
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, found.chain)
    if b"PRIVATE KEY-----" not in found.key:
        raise key.refusal("holds no private key in PEM")
    if b"ENCRYPTED" in found.key:
        hint = f"write it without one: `openssl pkey -in {key.path} -out FILE`, readable by its user alone"
        raise key.refusal("has a password, which gRPC can't take", hint=hint)
    _serving(certificate, key)
    # OpenSSL has read the files itself: check that it tried the same content as was read here.
    if Pair(read(certificate), read(key)) != found:
        raise certificate.refusal(f"or {key.path} is being written")
    return found


def lifetime(certificate: Named, key: Named, chain: bytes) -> Lifetime:
    """Return when a server's certificate is valid, by a handshake in memory with a client that trusts only it.

    Raises UsageError if clients would refuse it for another reason, such as a certificate that is not for servers.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load(trusting, certificate, chain)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up)
    server = _serving(certificate, key).wrap_bio(up, down, server_side=True)
    try:
        for _ in range(_FLIGHTS):
            for side in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == WRONG_PURPOSE:
            raise certificate.refusal("is no certificate for a server (extended key usage)") from None
        return Lifetime(expired=error.verify_code == EXPIRED, too_early=error.verify_code == TOO_EARLY)
    except ssl.SSLError as error:
        raise certificate.refusal(f"can't be served ({reason(error)})") from None
    told = client.getpeercert() or {}
    begins, ends = (ssl.cert_time_to_seconds(str(told[name])) for name in ("notBefore", "notAfter"))
    return Lifetime(begins, ends)


def expires_soon(begins: float, ends: float, now: float) -> bool:
    """Return whether a certificate is in its last week, or, if it lives shorter, in the last tenth of its life."""
    return ends - now < min(_WARNED_S, (ends - begins) * _WARNED_SHARE)


def date(seconds: float) -> str:
    """Return a time as log lines have it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def readable_by_all(path: str) -> bool:
    """Return whether every user of this machine may read a file."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)  # noqa: PTH116 - a name, not a Path
    except OSError:
        return False


def reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in lower case, without the place in its source."""
    return (error.reason or str(error)).replace("_", " ").lower()


def system() -> bytes | None:
    """Return the certificates of the system's authorities; None if they are not in a single file."""
    path = ssl.get_default_verify_paths().cafile
    try:
        return Path(path).read_bytes() if path else None
    except OSError:
        return None


def _load(context: ssl.SSLContext, file: Named, content: bytes) -> None:
    """Trust the certificates of a file. Raises UsageError if it holds none, or one that is cut off."""
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise file.refusal("holds no certificate in PEM")
    # Counted, because OpenSSL ignores a last certificate that is cut off within its first line.
    whole = content.count(b"-----BEGIN") == content.count(b"-----END")
    try:
        context.load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except ssl.SSLError:
        whole = False
    if not whole:
        raise file.refusal("holds a certificate that is damaged, or not written to its end")


def _serving(certificate: Named, key: Named) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate.path, key.path, password=lambda: "")
    except ssl.SSLError as error:
        # NO_CERTIFICATE_ASSIGNED: a key of another kind, such as an RSA key with an elliptic curve's certificate.
        if (error.reason or "").endswith(("MISMATCH", "NO_CERTIFICATE_ASSIGNED")):
            raise key.refusal(f"is not the key of the certificate in {certificate.path}") from None
        said = f" ({reason(error)})" if error.reason else ""
        raise key.refusal(f"holds a key that is damaged, or not written to its end{said}") from None
    except OSError as error:
        raise certificate.refusal(f"or {key.path} can't be read ({(error.strerror or str(error)).lower()})") from None
    return context


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a name, not a Path
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
