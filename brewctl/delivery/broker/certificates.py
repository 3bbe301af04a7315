"""Reading the certificates and keys of Kafka's clients, with an error that names the faulty file.

Imported only if Kafka is reached by TLS.
"""

import ssl
from pathlib import Path

from brewctl.errors import UsageError
from brewctl.security import KAFKA, KafkaSecurity


def context(security: KafkaSecurity, *, verify: bool = True) -> ssl.SSLContext:
    """Read the files now, and return a TLS context for connections to brokers. Raises UsageError.

    It trusts only the CA file, or the system's authorities if none is set, and checks the broker's host name. With
    `verify` false it accepts any certificate: for a connection that only asks why others fail, and sends no secret.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if security.ca:
        _load_authorities(made, security.ca)
    else:
        made.load_default_certs()
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if security.certificate:
        _load_own(made, security)
    elif security.key:
        raise UsageError(f"{KAFKA['kafka_key']} is set without {KAFKA['kafka_certificate']}", hint="set both")
    return made


def _load_authorities(made: ssl.SSLContext, name: str) -> None:
    variable = KAFKA["kafka_ca"]
    _require_readable(variable, name)
    try:
        made.load_verify_locations(name)
    except (ssl.SSLError, ValueError):
        raise UsageError(f"{variable}: {name} {_not_pem(name)}") from None


def _load_own(made: ssl.SSLContext, security: KafkaSecurity) -> None:
    """Load the client's own certificate and its key, which may be in the same file."""
    variable, name = KAFKA["kafka_certificate"], security.certificate
    _require_readable(variable, name)
    if security.key:
        _require_readable(KAFKA["kafka_key"], security.key)
    # Never an empty password: OpenSSL would ask for one at the terminal.
    password = security.key_password.read()
    try:
        made.load_cert_chain(name, security.key or None, password=lambda: password or "none")
    except ssl.SSLError as error:
        raise UsageError(_what_of_own(error, security, has_password=bool(password))) from None
    except ValueError:  # a password that is too long
        raise UsageError(f"{security.key_password.variable} is no key's password") from None


def _what_of_own(error: ssl.SSLError, security: KafkaSecurity, *, has_password: bool) -> str:
    """Return which of the certificate and its key is wrong, and why. OpenSSL's error does not tell which."""
    certificate, key = security.certificate, security.key or security.certificate
    of_key = f"{KAFKA['kafka_key' if security.key else 'kafka_certificate']}: the key in {key}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{of_key} is not that of the certificate in {certificate}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except (ssl.SSLError, ValueError):
        return f"{KAFKA['kafka_certificate']}: {certificate} {_not_pem(certificate)}"
    if b"ENCRYPTED" in Path(key).read_bytes():
        variable = security.key_password.variable
        return f"{of_key} {'does not open with' if has_password else 'is encrypted: it wants'} {variable}"
    return f"{of_key} can't be used: it is no PEM, or only a part of it"


def _require_readable(variable: str, name: str) -> None:
    try:
        with Path(name).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UsageError(f"{variable}: {name} can't be read ({(error.strerror or str(error)).lower()})") from None


def _not_pem(name: str) -> str:
    if not Path(name).read_bytes().strip():
        return "is empty"
    return "holds no certificate in PEM, or only a part of one"
