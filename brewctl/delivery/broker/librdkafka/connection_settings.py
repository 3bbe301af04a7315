"""The library's options for a connection, its log lines, and its errors as BrewError."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from brewctl import log, security
from brewctl.config import Settings
from brewctl.delivery.broker.failure_reasons import RIGHTS, forbidden, refused, unreachable
from brewctl.errors import BrewError, UsageError

logger = log.get(__name__)

_REFUSED_S = 0.5  # without an answer for so long, `refused` looks whether a broker refuses this client
_ERRORS_ONLY, _ALL = 0, 6  # of syslog's levels
AWAY = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001 - public, all of them
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError.REQUEST_TIMED_OUT,
    }
)


# Errors of a missing right, with the thing that the right is for.
FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the cluster",
}


class _Named(Protocol):
    def cluster_id(self, timeout: float) -> str | None: ...


class _Authenticates(Protocol):
    def set_sasl_credentials(self, username: str, password: str) -> None: ...


class Refusals:
    """Handles refused logins. After one, the library tries again with the password that the file has by then."""

    def __init__(self, settings: Settings) -> None:
        self._security = settings.kafka_security
        self._said = False
        self._due = False

    def hear(self, error: KafkaError) -> None:
        """Note an error of a connection, in the library's callback. The first refused login is logged."""
        if error.code() != KafkaError._AUTHENTICATION:  # noqa: SLF001
            return
        if not self._said:
            self._said = True
            hint = "the client tries again, and reads the password's file again"
            logger.warning("kafka_refused", reason=words(error), hint=hint)
        self._due = True

    def renew(self, library: _Authenticates) -> None:
        """Give the library the password again if it was refused.

        Call it outside of the library's callbacks: inside of one it would crash the process.
        """
        if not self._due:
            return
        self._due = False
        with contextlib.suppress(UsageError):  # the file may be in the middle of its replacement
            library.set_sasl_credentials(self._security.username, self._security.password.read())


class _Log:
    """Receives the library's own log lines, which it would otherwise write to stderr."""

    @staticmethod
    def log(_level: int, form: str, *words: object) -> None:
        """Write a line to the log at level debug."""
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):  # a command may not have configured a log
            logger.debug("librdkafka", said=form % words if words else form)


def connection(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the options of every client of this library. Raises UsageError for a file that can't be used."""
    secure = {}
    if settings.kafka_security.protocol is not security.Protocol.PLAINTEXT:
        from brewctl.delivery.broker.librdkafka import secured  # noqa: PLC0415 - only for TLS or passwords

        secure = secured.options(settings.kafka_security)
    limits = settings.limits
    verbose = logging.getLogger(__name__).isEnabledFor(logging.DEBUG)
    return {
        "bootstrap.servers": ",".join(settings.brokers),
        "client.id": name,
        "socket.connection.setup.timeout.ms": max(1000, int(limits.kafka_connect_s * 1000)),
        "socket.timeout.ms": int(limits.kafka_request_s * 1000),
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.refresh.interval.ms": int(limits.kafka_metadata_age_s * 1000),
        "allow.auto.create.topics": False,
        "enable.metrics.push": False,
        # Log lines queue up until the client is polled. Without -v they would be thrown away: the library writes none.
        "log_level": _ALL if verbose else _ERRORS_ONLY,
        "logger": _Log,
        **secure,
    }


def library() -> str:
    """Return the installed library's name and version."""
    version, _ = confluent_kafka.libversion()
    return f"librdkafka {version}, by confluent-kafka {confluent_kafka.version()}"


def require_answer(client: _Named, settings: Settings) -> None:
    """Wait for a broker's answer. Raises UnreachableError: after kafka_connect_s seconds, or at once for a refusal."""
    deadline = time.monotonic() + settings.limits.kafka_connect_s
    asked = False
    while True:
        try:
            client.cluster_id(timeout=min(_REFUSED_S, max(0.0, deadline - time.monotonic())))
        except KafkaException as raised:
            if not asked and (refusal := refused(settings)):
                raise refusal from raised
            asked = True
            if time.monotonic() >= deadline:
                raise unreachable(settings) from raised
        else:
            return


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Raise the library's errors as BrewError: UnreachableError, ForbiddenError, or one that names the Kafka error."""
    try:
        yield
    except KafkaException as raised:
        error = error_of(raised)
        if error.code() in AWAY:
            raise unreachable(settings) from raised
        if error.code() in FORBIDDEN:
            raise forbidden(settings, f"do this with {FORBIDDEN[error.code()]}") from raised
        raise BrewError(f"kafka {','.join(settings.brokers)}: {words(error)}") from raised


def error_of(raised: KafkaException) -> KafkaError:
    """Return the Kafka error inside of an exception of the library."""
    error: KafkaError = raised.args[0]
    return error


def words(error: KafkaError) -> str:
    """Write an error of the library in one line."""
    if error.code() in FORBIDDEN:
        return f"this user has no right to {FORBIDDEN[error.code()]}: {RIGHTS}"
    return f"{error.name()} {' '.join(error.str().split())}"[:300]


def within(call: Callable[[], Any], wait: Callable[[threading.Event], bool]) -> Any:
    """Make a call of the library that may block for long; return its result, or raise its exception.

    The call runs in its own thread. `wait` gets the event that the call's end sets, and returns whether it was set in
    time. If it was not, the thread goes on without us, and this raises TimeoutError.
    """
    done = threading.Event()
    answers: list[Any] = []
    failures: list[BaseException] = []

    def make() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(error)
        done.set()

    # A daemon, so that a blocked call does not delay the end of the process.
    threading.Thread(target=make, name="librdkafka-call", daemon=True).start()
    if not wait(done):
        raise TimeoutError
    if failures:
        raise failures[0]
    return answers[0]
