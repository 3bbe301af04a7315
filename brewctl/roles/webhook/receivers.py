"""Reads the receiver's settings from the environment, and checks them: its URL, the signing secrets, the timeout."""

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2
from standardwebhooks import Webhook

from brewctl import Secret, UsageError

URL, SECRET = "BREW_WEBHOOK_URL", "BREW_WEBHOOK_SECRET"
UNSIGNED, PLAIN_HTTP, TIMEOUT = "BREW_WEBHOOK_UNSIGNED", "BREW_WEBHOOK_PLAIN_HTTP", "BREW_WEBHOOK_TIMEOUT"
TIMEOUT_S = 5.0  # shorter than the drain: an open call ends before its node stops
_LONGEST_S = 60.0
_KEY_BYTES = range(24, 65)  # as Standard Webhooks has it
_LONGEST_URL = 2000
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_PORTS = range(1, 65536)
_MAKE_ONE = "make one with `openssl rand -base64 32`"


@dataclass(frozen=True)
class Receiver:
    """The receiver of notifications. `secret` is read for each call: its file may change while the node runs."""

    url: httpx2.URL = field(repr=False)  # with some receivers its path is a secret
    secret: Secret
    signed: bool
    timeout_s: float

    @property
    def name(self) -> str:
        """The receiver's name in messages: its URL without the path, which with some receivers is a secret."""
        return origin(self.url)

    def signatures(self, identity: str, at: datetime, body: str) -> str:
        """Return the value of `webhook-signature`: a signature for each secret. Raises UsageError."""
        return " ".join(key.sign(identity, at, body) for key in _keys(self.secret))


def from_environment(environ: Mapping[str, str] = os.environ) -> Receiver:
    """Return the receiver that the environment names. Raises UsageError for missing or wrong settings."""
    receiver = Receiver(
        url=_url(Secret.of(URL, environ).read().strip(), plain_http=_switch(PLAIN_HTTP, environ)),
        secret=Secret.of(SECRET, environ),
        signed=not _switch(UNSIGNED, environ),
        timeout_s=_timeout(environ.get(TIMEOUT, "").strip()),
    )
    if receiver.signed and not receiver.secret:
        hint = f"{_MAKE_ONE} and set {SECRET}_FILE to its file, or add --unsigned"
        raise UsageError(f"{SECRET} is not set: the receiver could not tell whose call it is", hint=hint)
    if receiver.signed:
        receiver.signatures("", datetime.now(UTC), "")
    return receiver


def origin(url: httpx2.URL) -> str:
    """Return a URL up to its path."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{host}{port}"


def _url(text: str, *, plain_http: bool) -> httpx2.URL:
    hint = "use https://HOST/PATH"
    if not text:
        raise UsageError("--channel webhook: no URL is given", hint=f"add --url, or set {URL}")
    try:
        url = httpx2.URL(text)
        port_is_one = url.port is None or url.port in _PORTS
        bad = not (url.scheme in {"https", "http"} and _is_host(url) and port_is_one and len(text) <= _LONGEST_URL)
    except (httpx2.InvalidURL, ValueError):
        bad = True
    if bad:  # not shown: with some receivers it is a secret
        raise UsageError(f"the webhook's URL, of {len(text)} characters, is no URL of a receiver", hint=hint)
    if url.userinfo:
        what = "the webhook's URL must not hold a user or a password"
        raise UsageError(what, hint=f"calls are signed: set {SECRET}, and let the receiver check it")
    if url.fragment:
        raise UsageError("the webhook's URL has a fragment, which is never sent", hint="leave away what follows the #")
    if url.scheme == "http" and not (plain_http or _is_loopback(url.host)):
        said = f"{origin(url)}: without TLS everybody on the way reads the notifications"
        raise UsageError(said, hint="use https://, or add --plain-http where the network is trusted")
    return url


def _is_host(url: httpx2.URL) -> bool:
    if ":" in url.host:
        return ipaddress.ip_address(url.host).version == 6  # noqa: PLR2004
    return _HOST.fullmatch(url.raw_host.decode("ascii", "replace")) is not None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys(secret: Secret) -> list[Webhook]:
    """Return a signing key for each of the secrets, which are separated by a blank. Raises UsageError."""
    keys = []
    for text in secret.read().split():
        try:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) not in _KEY_BYTES:
            raise UsageError(f"{SECRET}: a secret is the base64 of 24 to 64 bytes, and this is not", hint=_MAKE_ONE)
        keys.append(Webhook(key))
    if not keys:
        raise UsageError(f"{SECRET}: is empty", hint=_MAKE_ONE)
    return keys


def _switch(variable: str, environ: Mapping[str, str]) -> bool:
    text = environ.get(variable, "").strip().lower()
    if text not in {"", "0", "false", "no", "1", "true", "yes"}:
        raise UsageError(f"{variable}: {text[:80]!r} is neither 1 nor 0")
    return text in {"1", "true", "yes"}


def _timeout(text: str) -> float:
    try:
        seconds = float(text or TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"{TIMEOUT}: {text[:80]!r} is no number of seconds", hint=f"use 1 to {_LONGEST_S:g}")
    return seconds
