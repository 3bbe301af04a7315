"""Certificates of the tests' own authorities, in files that are replaced as cert-manager does: by a rename."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography import x509

from brewctl.security import OrderSecurity

HOSTS = ("localhost", "127.0.0.1")


class Files(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """What a server is started with."""
        return "--tls-cert", str(self.certificate), "--tls-key", str(self.key)

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


class Authority:
    """An authority, whose own certificate is in `ca`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._authority = trustme.CA()
        put(self.ca, self._authority.cert_pem.bytes())

    def issue(
        self,
        name: str = "server",
        *,
        hosts: tuple[str, ...] = HOSTS,
        age: timedelta = timedelta(1),
        left: timedelta = timedelta(30),
    ) -> Files:
        """Write a certificate that is `age` old and ends after what is left."""
        now = datetime.now(UTC)
        made = self._authority.issue_cert(*hosts, not_before=now - age, not_after=now + left)
        files = Files(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        put(files.key, made.private_key_pem.bytes(), mode=0o600)
        put(files.certificate, b"".join(each.bytes() for each in made.cert_chain_pems))
        return files

    def trusted(self, mine: Files | None = None, **more: object) -> OrderSecurity:
        """Settings of a client that trusts this authority, and shows a certificate of its own."""
        shown = {"certificate": str(mine.certificate), "key": str(mine.key)} if mine else {}
        return OrderSecurity(ca=str(self.ca), **shown, **more)  # type: ignore[arg-type]


def put(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Replace a file in one step: who reads it has the old one, or the new one."""
    new = path.with_suffix(".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(mode)
    os.replace(new, path)  # noqa: PTH105


def variables(security: OrderSecurity) -> dict[str, str]:
    """The same for a process."""
    return {
        "BREW_ORDER_CA_FILE": security.ca,
        "BREW_ORDER_CERT_FILE": security.certificate,
        "BREW_ORDER_KEY_FILE": security.key,
        "BREW_ORDER_TOKEN": security.token.text,
        "BREW_ORDER_TOKEN_FILE": security.token.file,
    }
