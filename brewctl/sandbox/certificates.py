"""The certificates of a secured sandbox: a certificate authority, and a certificate that it signed for each server.

A client trusts this authority only if it is given the authority's file, `ca.pem`. Only secured sandboxes import this
module, which needs the library cryptography.
"""

import datetime as dt
import ipaddress
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from brewctl.errors import BrewError
from brewctl.sandbox import secured
from brewctl.sandbox.secured import AUTHORITY, KAFKA, ORDER, POSTGRES

# The servers with a certificate, and whether it is a client certificate too: Kafka's nodes show it to each other.
_SERVERS = {KAFKA: True, POSTGRES: False, ORDER: False}
_AUTHORITY_DAYS = 20 * 365
_SERVER_DAYS = 5 * 365
# `up` renews a certificate that expires within this time, if no server runs.
_RENEWED_DAYS = 90
_BEFORE_DAYS = 1  # valid from a day ago, in case the clock is set back
_Loaded = TypeVar("_Loaded")


class _UnusableError(Exception):
    """A certificate or key file can't be used. The message names the file and the problem."""


def ensure(home: Path, *, running: Sequence[str]) -> bool:
    """Create all certificates anew if one is missing, damaged or about to expire. Returns whether it did.

    Raises BrewError if that is needed while servers run (`running`: their names): they still use the old files.
    """
    folder = secured.folder(home)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    now = dt.datetime.now(dt.UTC)
    spare = dt.timedelta(days=0 if running else _RENEWED_DAYS)
    try:
        authority = _usable(folder, AUTHORITY, now, spare)
        for name in _SERVERS:
            _usable(folder, name, now, spare, authority)
        _join(folder)
    except _UnusableError as error:
        if running:
            hint = "run `brewctl down`, then `brewctl up`, which makes it anew"
            raise BrewError(str(error), hint=hint) from None
        _make(folder, now)
        return True
    return False


def _usable(
    folder: Path, name: str, now: dt.datetime, spare: dt.timedelta, issuer: x509.Certificate | None = None
) -> x509.Certificate:
    """Return a certificate. Raises _UnusableError if it is not valid. Without `issuer` it must be self-signed."""
    file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    certificate = _loaded(file, x509.load_pem_x509_certificate)
    key = _loaded(key_file, lambda pem: serialization.load_pem_private_key(pem, None))
    if key.public_key() != certificate.public_key():
        raise _UnusableError(f"{key_file} is not the key of {file.name}")
    try:
        certificate.verify_directly_issued_by(issuer or certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise _UnusableError(f"{file} was not signed by {AUTHORITY}.pem beside it") from None
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - spare:
        days = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise _UnusableError(f"{file} is valid only from {days}")
    return certificate


def _loaded(file: Path, load: Callable[[bytes], _Loaded]) -> _Loaded:
    with suppress(OSError):
        file.chmod(0o600)  # PostgreSQL refuses a key file that other users may read
    try:
        return load(file.read_bytes())
    except FileNotFoundError:
        raise _UnusableError(f"{file} is missing") from None
    except OSError as error:
        raise _UnusableError(f"{file} can't be read ({(error.strerror or str(error)).lower()})") from None
    except (ValueError, TypeError):
        raise _UnusableError(f"{file} is damaged") from None


def _make(folder: Path, now: dt.datetime) -> None:
    """Create the authority and all certificates. A client with a copy of the old ca.pem no longer trusts them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "brewctl sandbox")])
    builder = _builder(name, name, key, now, _AUTHORITY_DAYS).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    authority = builder.add_extension(_usage(signs_certificates=True), critical=True).sign(key, hashes.SHA256())
    _write(folder, AUTHORITY, authority, key)
    for server, mutual in _SERVERS.items():
        _write(folder, server, *_signed(server, authority, key, now, mutual=mutual))
    _join(folder)


def _signed(
    server: str,
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    *,
    mutual: bool,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server)])
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if mutual else [])]
    builder = _builder(subject, authority.subject, key, now, _SERVER_DAYS)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.SubjectAlternativeName(addresses), False),
        (x509.ExtendedKeyUsage(uses), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256()), key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=_BEFORE_DAYS))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    # Unencrypted PKCS #8 is the one form that both Java and PostgreSQL read.
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    secured.write(folder / f"{name}.key", secret)
    secured.write(folder / f"{name}.pem", public)


def _join(folder: Path) -> None:
    """Write Kafka's key and certificate into one file, as its PEM keystore needs them."""
    secured.write_if_other(
        folder / secured.KAFKA_STORE, b"".join((folder / f"{KAFKA}.{part}").read_bytes() for part in ("key", "pem"))
    )
