"""Finds out why a connection to an order-service fails, by a TLS handshake of its own: gRPC tells little of it."""

import contextlib
import socket
import ssl
from typing import Any, NamedTuple

from brewctl import certificates
from brewctl.client.channels import ca_file, pair_files
from brewctl.errors import UsageError
from brewctl.security import ORDER, OrderSecurity

_CA, _CERTIFICATE, _KEY, _TLS = (ORDER[name] for name in ("order_ca", "order_certificate", "order_key", "order_tls"))
_OTHER_NAME = frozenset({certificates.OTHER_NAME, certificates.OTHER_ADDRESS})
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
# The first bytes of an HTTP/2 client: its preface, and an empty settings frame.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


class Cause(NamedTuple):
    """Why a connection fails, as the end of a sentence that begins with the server's name; and what to do about it."""

    text: str
    hint: str


class Met(NamedTuple):
    """A successful handshake: when the server's certificate begins and ends to be valid, in seconds since 1970."""

    begins: float
    ends: float


def why_not(address: str, security: OrderSecurity, *, within_s: float) -> Cause | None:
    """Return why clients with these settings get no connection; None if TLS is not the cause."""
    if not security.encrypts:
        return _speaks_tls(address, within_s=within_s)
    found = greet(address, security, within_s=within_s)
    return found if isinstance(found, Cause) else None


def greet(address: str, security: OrderSecurity, *, within_s: float) -> Cause | Met | None:
    """Connect as clients with these settings do. None if that fails for another reason than TLS."""
    try:
        told = _exchange(address, _context(security), within_s)
    except UsageError as error:
        return Cause(f"is not connected to: {error.message}", error.hint)
    except ssl.SSLError as error:
        return _refusal(address, security, error)
    except OSError:
        return None
    if told is None:
        return _not_let_in(security, "it hung up")
    begins, ends = (ssl.cert_time_to_seconds(str(told[name])) for name in ("notBefore", "notAfter"))
    return Met(begins, ends)


def _exchange(address: str, context: ssl.SSLContext, within_s: float) -> dict[str, Any] | None:
    """Connect, send an HTTP/2 greeting, and return the server's certificate; None if the server only hangs up."""
    with _connected(address, within_s) as plain, context.wrap_socket(plain, server_hostname=_host(address)) as tls:
        # With TLS 1.3 a server checks the client's certificate only after the handshake has succeeded for the client.
        try:
            tls.sendall(_GREETING)
            return tls.getpeercert() if tls.recv(1) else None
        except (ConnectionResetError, BrokenPipeError):
            return None


def _refusal(address: str, security: OrderSecurity, error: ssl.SSLError) -> Cause | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_trusted(address, security, error)
    reason = error.reason or ""
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return Cause("speaks no TLS", f"unset {_CA} and {_TLS}, or start it with --tls-cert and --tls-key")
    return _not_let_in(security, certificates.reason(error)) if "ALERT" in reason else None


def _not_trusted(address: str, security: OrderSecurity, error: ssl.SSLCertVerificationError) -> Cause:
    """Return why this client does not trust the server's certificate."""
    code, trusted = error.verify_code, security.ca or "the system's authorities"
    replace = "replace the files of its --tls-cert and --tls-key: it needs no restart"
    if code == certificates.EXPIRED:
        return Cause("shows a certificate that has expired, or whose authority has", replace)
    if code == certificates.TOO_EARLY:
        return Cause("shows a certificate that is not valid yet", f"compare the clocks, or {replace}")
    if code in _OTHER_NAME:
        hint = "connect to a name that the certificate has, or have one issued with this name or address"
        return Cause(f"shows a certificate that is not for {_host(address)}", hint)
    if code in _UNKNOWN_AUTHORITY:
        hint = f"set {_CA} to the certificate of the authority that issued it"
        return Cause(f"shows a certificate that no authority in {trusted} has issued", hint)
    if code == certificates.WRONG_PURPOSE:
        return Cause("shows a certificate that is not meant for servers", replace)
    return Cause(f"shows a certificate that is not trusted ({error.verify_message})", replace)


def _not_let_in(security: OrderSecurity, said: str) -> Cause:
    """Return why the server refuses this client: it only accepts certificates of its --tls-client-ca."""
    if not security.certificate:
        return Cause("wants a certificate of its clients", f"set {_CERTIFICATE} and {_KEY}")
    files = pair_files(security)
    with contextlib.suppress(UsageError):
        mine = certificates.lifetime(*files, certificates.read(files[0]))
        if mine.expired or mine.too_early:
            when = "has expired" if mine.expired else "is not valid yet"
            return Cause(f"does not take the client's certificate: {security.certificate} {when}", "replace it")
    hint = f"set {_CERTIFICATE} to one that an authority of its --tls-client-ca has issued"
    return Cause(f"does not take the client's certificate in {security.certificate} ({said})", hint)


def _speaks_tls(address: str, *, within_s: float) -> Cause | None:
    """Return the cause if the server speaks TLS, while this client is set to plaintext; else None."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _connected(address, within_s) as plain, context.wrap_socket(plain):
            pass
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return None
    except OSError:
        return None
    hint = f"set {_CA} to its authority's certificate, or {_TLS}=1 for the system's authorities"
    return Cause("speaks TLS, and is asked in plain text", hint)


def _context(security: OrderSecurity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if security.ca:
        context.load_verify_locations(cadata=certificates.authorities(ca_file(security)).decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    if security.certificate:
        certificates.pair(*pair_files(security))
        context.load_cert_chain(security.certificate, security.key)
    context.set_alpn_protocols(["h2"])
    return context


def _connected(address: str, within_s: float) -> socket.socket:
    port = address.rpartition(":")[2]
    return socket.create_connection((_host(address), int(port)), timeout=within_s)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
