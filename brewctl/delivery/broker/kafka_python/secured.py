"""Connections with TLS and passwords. Importing this module replaces the library's connections in the whole process.

Imported only if Kafka's protocol is not PLAINTEXT. The library's own connections have these faults:
- They read certificates and passwords once, so that new ones need a restart.
- They authenticate in Kafka's oldest form, in which a broker gives no reason for a refusal and all other work waits.
- A TLS error in the middle of a connection ends the role.
- A refused certificate or password looks as if there were no broker.
"""

import contextlib
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from kafka import client_async, conn, errors, sasl
from kafka.conn import BrokerConnection, ConnectionStates
from kafka.future import Future
from kafka.protocol.admin import SaslAuthenticateRequest, SaslHandShakeRequest
from kafka.scram import ScramClient

from brewctl import log
from brewctl.delivery.broker import certificates
from brewctl.delivery.certificate_faults import told
from brewctl.errors import UsageError
from brewctl.security import KafkaSecurity, Mechanism

logger = log.get(__name__)

_AUTHENTICATING = ConnectionStates.AUTHENTICATING
_HINT = "the client tries again, and reads the files again each time"
_WANT_MORE = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class CredentialsError(errors.KafkaConnectionError):  # type: ignore[misc]
    """The broker or this client does not accept the other side's certificate, user or password."""

    def __str__(self) -> str:
        return str(self.args[0])


_REFUSALS = (CredentialsError, errors.UnsupportedSaslMechanismError, errors.IllegalSaslStateError)


class SecuritySettings:
    """The security settings in a client's options: each new connection reads their files again."""

    def __init__(self, security: KafkaSecurity, brokers: Sequence[str]) -> None:
        self.security = security
        self._asked = set(brokers)
        self._refusals: dict[str, CredentialsError] = {}

    def refuse(self, address: str, error: CredentialsError, *, running: bool) -> None:
        """Note that a broker and this client do not accept each other. Logged once, if the client is `running`."""
        if running and address not in self._refusals:
            logger.warning("kafka_refused", broker=address, reason=told(error), hint=_HINT)
        self._refusals[address] = error

    def accept(self, address: str) -> None:
        """Note that a broker and this client accept each other. Logged if they did not before."""
        if self._refusals.pop(address, None):
            logger.info("kafka_accepted", broker=address)

    def require_any(self) -> None:
        """Raise a broker's error if all configured brokers refused: to ask them again would change nothing."""
        if self._asked <= self._refusals.keys():
            raise next(iter(self._refusals.values()))


class _TlsError(ConnectionError):
    """A TLS error in the middle of a connection."""


class _Socket(ssl.SSLSocket):
    """A TLS socket whose errors are connection errors: the library closes the connection and opens a new one."""

    def recv(self, *arguments: Any) -> bytes:
        """Receive, as any socket does."""
        with _as_connection_error():
            return super().recv(*arguments)

    def send(self, *arguments: Any) -> int:
        """Send, as any socket does."""
        with _as_connection_error():
            return super().send(*arguments)


@contextlib.contextmanager
def _as_connection_error() -> Any:
    try:
        yield
    except _WANT_MORE:
        raise
    except ssl.SSLError as error:
        raise _TlsError(told(error)) from error


class SecuredConnection(BrokerConnection):  # type: ignore[misc]
    """A connection to one broker. `why`: the first error that ended it."""

    why: Exception | None = None
    _sock: Any

    @property
    def refused(self) -> bool:
        """Return whether a refused certificate or user ended it."""
        return isinstance(self.why, CredentialsError)

    def close(self, error: Exception | None = None) -> None:
        """Close the connection, and note if `error` is a refusal."""
        settings = self.config["ssl_context"]
        if error is not None and settings and self._is_refusal(error):
            if not isinstance(error, CredentialsError):
                error = CredentialsError(_words(error))
            settings.refuse(f"{self.host}:{self.port}", error, running=self.config["api_version"] is not None)
        self.why = self.why or error
        super().close(error)

    def _is_refusal(self, error: Exception) -> bool:
        cause = error.args[0] if error.args else None
        return isinstance(error, _REFUSALS) or isinstance(cause, _TlsError) or self.state == _AUTHENTICATING

    def connect(self) -> Any:
        """Connect as far as possible without waiting.

        While the client is being made, raises CredentialsError once all configured brokers have refused.
        """
        connected = self.connected()
        state = super().connect()
        if (settings := self.config["ssl_context"]) is None:
            return state
        if state == ConnectionStates.CONNECTED and not connected:
            settings.accept(f"{self.host}:{self.port}")
        elif self.config["api_version"] is None and self.refused:
            settings.require_any()
        return state

    def _try_authenticate(self) -> Any:
        """Go on authenticating, reading one chunk at a time.

        The library drops a chunk that it reads together with the connection's end: the reason of a refusal is in it.
        """
        chunks = self.config["sock_chunk_buffer_count"]
        self.config["sock_chunk_buffer_count"] = 1
        try:
            return super()._try_authenticate()
        finally:
            self.config["sock_chunk_buffer_count"] = chunks
            if self.state != _AUTHENTICATING:
                # If the first request can't be sent, the library closes the connection and afterwards stores this
                # future. The next connection would wait for it and never authenticate.
                self._sasl_auth_future = None

    def _wrap_ssl(self) -> None:
        self._fault: Exception | None = None
        try:
            context = certificates.context(self.config["ssl_context"].security)
            context.sslsocket_class = _Socket
            self._sock = context.wrap_socket(
                self._sock, server_hostname=self.host.rstrip("."), do_handshake_on_connect=False
            )
        except (UsageError, OSError, ValueError) as error:
            self._fault = error  # raised by the handshake, which the library calls next

    def _try_handshake(self) -> bool:
        try:
            if self._fault:
                raise self._fault
            self._sock.do_handshake()
        except _WANT_MORE:
            return False
        except (ssl.SSLError, UsageError) as error:
            refusal = CredentialsError(told(error))
            refusal.__cause__ = error
            self.close(refusal)
        except (OSError, ValueError) as error:
            self.close(errors.KafkaConnectionError(str(error)))
        else:
            return True
        return False


class _Authentication:
    """Authenticates one connection in Kafka's newer form, in which a broker gives the reason of a refusal."""

    def __init__(self, connection: SecuredConnection, future: Future) -> None:
        self._connection = connection
        self._future = future

    def begin(self) -> None:
        """Send the first message, with the password as its file has it now."""
        security: KafkaSecurity = self._connection.config["ssl_context"].security
        try:
            password = security.password.read()
        except UsageError as error:
            self._fail(str(error))
            return
        if security.mechanism is Mechanism.PLAIN:
            self._say(f"\0{security.username}\0{password}", self._done)
        else:
            self._scram = ScramClient(security.username, password, security.mechanism.value)
            self._say(self._scram.first_message(), self._prove)

    def _prove(self, answer: str) -> None:
        self._scram.process_server_first_message(answer)
        self._say(self._scram.final_message(), self._believe)

    def _believe(self, answer: str) -> None:
        self._scram.process_server_final_message(answer)  # proves that the broker knows the password
        self._done(answer)

    def _done(self, _answer: str) -> None:
        self._future.success(True)

    def _say(self, words: str, then: Callable[[str], None]) -> None:
        sent = self._connection._send(SaslAuthenticateRequest[0](words.encode()))  # noqa: SLF001
        sent.add_callback(self._hear, then)
        sent.add_errback(self._future.failure)

    def _hear(self, then: Callable[[str], None], answer: Any) -> None:
        if answer.error_code:
            self._fail(answer.error_message or errors.for_code(answer.error_code).__name__)
            return
        try:
            then(answer.sasl_auth_bytes.decode())
        except (ValueError, KeyError) as error:  # the broker did not prove that it knows the password
            self._fail(f"{error}".lower())

    def _fail(self, reason: str) -> None:
        refusal = CredentialsError(reason)
        self._connection.close(refusal)
        self._future.failure(refusal)


class _Sasl:
    """A SASL mechanism, with the functions that the library calls."""

    @staticmethod
    def validate_config(_connection: SecuredConnection) -> None:
        """Do nothing: the settings are checked before."""

    @staticmethod
    def try_authenticate(connection: SecuredConnection, future: Future) -> None:
        """Begin to authenticate. The future gets the outcome."""
        _Authentication(connection, future).begin()


def _words(error: Exception) -> str:
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        return "the broker has not enabled that SASL mechanism"
    if isinstance(error, errors.IllegalSaslStateError):
        return "the broker wants no SASL"
    return " ".join(str(error).split())[:300]


def options(security: KafkaSecurity, brokers: Sequence[str]) -> dict[str, Any]:
    """Return the options of a client. Raises UsageError for a file that can't be used."""
    if security.protocol.encrypts:
        certificates.context(security)
    if security.protocol.authenticates:
        security.password.read()
    return {
        "security_protocol": security.protocol.value,
        "ssl_context": SecuritySettings(security, brokers),
        "sasl_mechanism": security.mechanism.value if security.protocol.authenticates else None,
    }


for _mechanism in Mechanism:
    sasl.MECHANISMS[_mechanism.value] = _Sasl
conn.SaslHandShakeRequest = SaslHandShakeRequest[1:]  # after version 0 a broker expects the older form
client_async.BrokerConnection = SecuredConnection
