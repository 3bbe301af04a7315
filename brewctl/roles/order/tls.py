"""The server's certificate. When its files are replaced while the server runs, the next connection gets the new one."""

import math
import threading
import time

import grpc

from brewctl import certificates, log
from brewctl.certificates import Lifetime, Named, Pair
from brewctl.errors import UsageError
from brewctl.roles import listening
from brewctl.roles.listening import Security

logger = log.get(__name__)


class Certificates:
    """A certificate with its key, and the clients' authorities, as of the last time that the files fitted together."""

    def __init__(self, security: Security) -> None:
        """Read the files. Raises UsageError. An expired certificate is served: it may be replaced while we run."""
        assert security.certificate is not None
        assert security.key is not None
        self._certificate = Named(listening.CERTIFICATE, security.certificate)
        self._key = Named(listening.KEY, security.key)
        self._ca = None if security.client_ca is None else Named(listening.CLIENT_CA, security.client_ca)
        self._paths = [file.path for file in (self._certificate, self._key, self._ca) if file]
        self._lock = threading.Lock()
        self._stamp = certificates.stamp(*self._paths)
        self._bad_stamp: certificates.Stamp | None = None
        self._said = ""
        self._lifetime = Lifetime()
        self._told = ""
        self._configuration = self._read()
        self._new = False
        if certificates.readable_by_all(self._key.path):
            logger.warning("key_readable_by_all", file=self._key.path, hint=f"chmod 600 {self._key.path}")

    def credentials(self) -> grpc.ServerCredentials:
        """Return the server's credentials. If client authorities are set, clients must show a certificate of theirs."""
        return grpc.dynamic_ssl_server_credentials(self._configuration, self._fetch, self._ca is not None)

    def look(self) -> None:
        """Read the files again if they have changed; log what is wrong with them, or that the certificate expires."""
        self._look(says=True)
        self._tell_times()

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, None if there is none. gRPC calls this before each handshake."""
        self._look(says=False)
        with self._lock:
            new, self._new = self._new, False
            return self._configuration if new else None

    def _look(self, *, says: bool) -> None:
        with self._lock:
            now = certificates.stamp(*self._paths)
            if now == self._stamp or (now == self._bad_stamp and not says):
                return
            try:
                self._configuration = self._read()
            except UsageError as error:
                # Two files are replaced one after the other. Only what is still wrong at the next look is logged.
                if says and now == self._bad_stamp and self._said != error.message:
                    self._said = error.message
                    logger.warning(
                        "certificate_unusable", reason=error.message, hint="the one read before stays in force"
                    )
                if says:
                    self._bad_stamp = now
                return
            self._stamp, self._bad_stamp, self._said, self._told, self._new = now, None, "", "", True
            ends = self._lifetime.ends
        logger.info("certificate_replaced", expires=certificates.date(ends) if ends else None)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = certificates.pair(self._certificate, self._key)
        authorities = certificates.authorities(self._ca) if self._ca else None
        self._lifetime = certificates.lifetime(self._certificate, self._key, pair.chain)
        return _configuration(pair, authorities)

    def _tell_times(self) -> None:
        """Log once that the certificate expires soon, that it has expired, or that it is not valid yet."""
        with self._lock:
            event, words = _state(self._lifetime, time.time())
            if event == self._told:
                return
            self._told = event
        if event:
            hint = f"replace {self._certificate.path} and its key: no restart is needed"
            logger.warning(event, **words, hint=hint)


def _configuration(pair: Pair, authorities: bytes | None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], authorities)


def _state(lifetime: Lifetime, now: float) -> tuple[str, dict[str, str]]:
    """Return the log event for a certificate's age, with its fields; "" if there is nothing to log."""
    if lifetime.too_early:
        return "certificate_not_valid_yet", {}
    if lifetime.expired:
        return "certificate_expired", {}
    if lifetime.begins is None or lifetime.ends is None:
        return "", {}
    if now >= lifetime.ends:
        return "certificate_expired", {"expired": certificates.date(lifetime.ends)}
    if certificates.expires_soon(lifetime.begins, lifetime.ends, now):
        left_h = math.ceil((lifetime.ends - now) / 3600)
        return "certificate_expires", {"expires": certificates.date(lifetime.ends), "within": f"{left_h} h"}
    return "", {}
