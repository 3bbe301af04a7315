"""Checks how order-service listens: its certificate, its tokens, and plain text to other machines."""

import ipaddress
import socket
from dataclasses import dataclass

from brewctl.errors import UsageError

CERTIFICATE, KEY, CLIENT_CA, TOKENS, INSECURE = (
    "--tls-cert",
    "--tls-key",
    "--tls-client-ca",
    "--tokens",
    "--insecure",
)
# The environment variables of the options that name files.
VARIABLES = (
    "BREW_SERVE_TLS_CERT_FILE",
    "BREW_SERVE_TLS_KEY_FILE",
    "BREW_SERVE_TLS_CLIENT_CA_FILE",
    "BREW_SERVE_TOKENS_FILE",
)


@dataclass(frozen=True)
class Security:
    """The names of a server's files, whose content may change while it runs; None: not given."""

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    tokens: str | None = None
    insecure: bool = False

    @property
    def encrypts(self) -> bool:
        """Whether the server uses TLS."""
        return self.certificate is not None

    @property
    def has_files(self) -> bool:
        """Whether there are files to read again while it runs."""
        return self.encrypts or self.tokens is not None

    def arguments(self) -> list[str]:
        """Return these options as arguments for another process."""
        files = {CERTIFICATE: self.certificate, KEY: self.key, CLIENT_CA: self.client_ca, TOKENS: self.tokens}
        words = [word for option, path in files.items() if path is not None for word in (option, path)]
        return [*words, *([INSECURE] if self.insecure else [])]

    def check(self, host: str) -> None:
        """Raise UsageError for options that exclude each other, and for a port that others reach without TLS."""
        if (self.certificate is None) != (self.key is None):
            given, lacking = (CERTIFICATE, KEY) if self.key is None else (KEY, CERTIFICATE)
            raise UsageError(f"{given} is given without {lacking}", hint="a certificate and its key go together")
        if self.client_ca is not None and not self.encrypts:
            hint = f"add {CERTIFICATE} and {KEY}"
            raise UsageError(f"{CLIENT_CA} is given without TLS: clients show certificates in TLS alone", hint=hint)
        if self.insecure and self.encrypts:
            hint = f"leave {INSECURE} away to serve TLS"
            raise UsageError(f"{INSECURE} and {CERTIFICATE} are both given", hint=hint)
        if not (self.encrypts or self.insecure or is_loopback(host)):
            what = "tokens and orders" if self.tokens else "orders"
            raise UsageError(
                f"--host {host} is reached from other machines, and without TLS they send {what} in plain text",
                hint=f"add {CERTIFICATE} and {KEY}, or {INSECURE} where the network is trusted",
            )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address. True for an unknown host: listening on it fails anyway."""
    bare = host.strip("[]")
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    return all(ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback for *_, place in found)
