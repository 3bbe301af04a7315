"""Channels to order-services, in plaintext or TLS. They are renewed when the certificates' files change."""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc

from brewctl import certificates
from brewctl.certificates import Named, Stamp
from brewctl.errors import UsageError
from brewctl.security import ORDER, OrderSecurity

# Order-services are connected to directly, as PostgreSQL and Kafka are. gRPC by default obeys https_proxy and its like,
# which are meant for the web: such a proxy refuses this port, and 127.0.0.1 is another machine to it.
DIRECT = (("grpc.enable_http_proxy", 0),)
THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "[::1]"})
# How often a caller checks whether the files have changed.
_LOOK_S = 1.0

Metadata = tuple[tuple[str, str], ...]


def check(security: OrderSecurity, addresses: Sequence[str]) -> None:
    """Raise UsageError if a token would be sent in plaintext to another machine."""
    if not security.token or security.encrypts:
        return
    for address in addresses:
        host = address.rpartition(":")[0]
        if host not in THIS_MACHINE and not host.startswith("127."):
            hint = f"set {ORDER['order_ca']}, or {ORDER['order_tls']}=1 for the system's authorities"
            raise UsageError(f"the token would go to {address} in plain text: TLS is not set", hint=hint)


def credentials(security: OrderSecurity) -> grpc.ChannelCredentials | None:
    """Read the files, and return the credentials of a channel; None for plaintext. Raises UsageError."""
    if not security.encrypts:
        return None
    authorities = certificates.authorities(ca_file(security)) if security.ca else certificates.system()
    if not security.certificate:
        return grpc.ssl_channel_credentials(authorities)
    pair = certificates.pair(*pair_files(security))
    return grpc.ssl_channel_credentials(authorities, pair.key, pair.chain)


def ca_file(security: OrderSecurity) -> Named:
    """Return the file of the certificate authorities."""
    return Named(ORDER["order_ca"], security.ca)


def pair_files(security: OrderSecurity) -> tuple[Named, Named]:
    """Return the files of the client's own certificate and of its key."""
    return Named(ORDER["order_certificate"], security.certificate), Named(ORDER["order_key"], security.key)


def token(security: OrderSecurity) -> Metadata:
    """Return the metadata with the caller's token, empty without one. Raises UsageError."""
    if not security.token:
        return ()
    text = security.token.read()
    if not (text.isascii() and text.isprintable()) or " " in text:
        where = f"{security.token.variable}_FILE" if security.token.file else security.token.variable
        raise UsageError(f"{where}: no token: it has a letter that can't be sent", hint="tokens are letters and digits")
    return (("authorization", f"Bearer {text}"),)


def open_channel(
    address: str, by: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]] = DIRECT
) -> grpc.Channel:
    """Make a channel, which connects at its first call."""
    if by is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, by, options=options)


class Line(NamedTuple):
    """Channels to the addresses in their order, once for each connection, and the metadata with the token."""

    channels: tuple[grpc.Channel, ...]
    metadata: Metadata


class Lines:
    """The channels of a client. They are renewed when the files have changed, because gRPC reads them only once."""

    def __init__(
        self,
        addresses: Sequence[str],
        security: OrderSecurity,
        *,
        options: Sequence[tuple[str, Any]],
        connections: int,
        longest_call_s: float,
    ) -> None:
        """Make the channels. Raises UsageError.

        `longest_call_s`: replaced channels are closed twice that time later, when no call can use them any more.
        """
        check(security, addresses)
        self._addresses = [address for _ in range(connections) for address in addresses]
        self._security = security
        self._options = options
        self._longest_call_s = longest_call_s
        self._files = [path for path in (security.ca, security.certificate, security.key) if path]
        self._has_files = bool(self._files or security.token.file)
        self._lock = threading.Lock()
        self._retired: list[tuple[float, tuple[grpc.Channel, ...]]] = []
        self._closed = False
        self.refusal: UsageError | None = None  # why the changed files can't be used
        self._stamps = self._stamp()
        self._looked_at = time.monotonic()
        self.line = Line(self._channels(), token(security))

    def look(self, *, now: bool = False) -> Line:
        """Return the channels to use. Checks at most once a second (or `now`) whether the files have changed."""
        line = self.line
        if not self._has_files or (not now and time.monotonic() < self._looked_at + _LOOK_S):
            return line
        with self._lock:
            self._looked_at = time.monotonic()
            self._close_retired()
            stamps = self._stamp()
            if stamps != self._stamps and not self._closed:
                self._renew(stamps)
            return self.line

    def close(self) -> None:
        """Close all channels."""
        with self._lock:
            self._closed = True
            self._close_retired(all_of_them=True)
            for channel in self.line.channels:
                channel.close()

    def _renew(self, stamps: tuple[Stamp, Stamp]) -> None:
        channels = self.line.channels
        try:
            metadata = token(self._security)
            if stamps[0] != self._stamps[0]:
                channels = self._channels()
        except UsageError as error:  # the files may be half-written: keep the channels of before
            self.refusal = error
            return
        if channels is not self.line.channels:
            self._retired.append((time.monotonic(), self.line.channels))
        self._stamps, self.refusal = stamps, None
        self.line = Line(channels, metadata)

    def _channels(self) -> tuple[grpc.Channel, ...]:
        by = credentials(self._security)
        return tuple(open_channel(address, by, self._options) for address in self._addresses)

    def _stamp(self) -> tuple[Stamp, Stamp]:
        token_file = self._security.token.file
        return certificates.stamp(*self._files), certificates.stamp(*([token_file] if token_file else []))

    def _close_retired(self, *, all_of_them: bool = False) -> None:
        over = time.monotonic() - 2 * self._longest_call_s
        for retired in list(self._retired):
            if all_of_them or retired[0] < over:
                self._retired.remove(retired)
                for channel in retired[1]:
                    channel.close()
