"""The library's settings for a connection, its log lines, and its errors in the user's words."""

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

_REFUSED_S = 0.5  # a broker that has not answered by then is asked whether it refuses
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


# What a user has no right to.
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
    """Hears what the library says of its connections.

    A broker that refused the user gets the password of its file as it is now, at the library's next try.
    """

    def __init__(self, settings: Settings) -> None:
        self._security = settings.kafka_security
        self._said = False
        self._due = False

    def hear(self, error: KafkaError) -> None:
        """Take one error, in the library's callback. Says once that a broker refuses."""
        if error.code() != KafkaError._AUTHENTICATION:  # noqa: SLF001
            return
        if not self._said:
            self._said = True
            logger.warning("kafka_refused", reason=words(error), hint="it tries again, and reads the password's file")
        self._due = True

    def renew(self, library: _Authenticates) -> None:
        """Give the library the password, where it was refused. Not in its callback: that would end the process."""
        if not self._due:
            return
        self._due = False
        with contextlib.suppress(UsageError):  # the file is being replaced
            library.set_sasl_credentials(self._security.username, self._security.password.read())


class _Log:
    """Takes the library's own log lines, which would go to stderr as they are."""

    @staticmethod
    def log(_level: int, form: str, *words: object) -> None:
        """Write one, for who wants to know everything."""
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):  # a command may have no log at all
            logger.debug("librdkafka", said=form % words if words else form)


def connection(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the options that every client is made with. Raises UsageError for a file that can't be used."""
    secure = {}
    if settings.kafka_security.protocol is not security.Protocol.PLAINTEXT:
        from brewctl.delivery.broker.librdkafka import secured  # noqa: PLC0415 - few need it

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
        # Lines wait in a queue until the client is used: where nobody reads them, none are made.
        "log_level": _ALL if verbose else _ERRORS_ONLY,
        "logger": _Log,
        **secure,
    }


def library() -> str:
    """Name the library that is installed, with its version."""
    version, _ = confluent_kafka.libversion()
    return f"librdkafka {version}, by confluent-kafka {confluent_kafka.version()}"


def require_answer(client: _Named, settings: Settings) -> None:
    """Raise UnreachableError where no broker answers within kafka_connect_s seconds, or at once where it refuses."""
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
    """Turn the library's errors into the user's."""
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
    """Return the error that an exception was raised for."""
    error: KafkaError = raised.args[0]
    return error


def words(error: KafkaError) -> str:
    """Write an error of the library in one line."""
    if error.code() in FORBIDDEN:
        return f"this user has no right to {FORBIDDEN[error.code()]}: {RIGHTS}"
    return f"{error.name()} {' '.join(error.str().split())}"[:300]


def within(call: Callable[[], Any], wait: Callable[[threading.Event], bool]) -> Any:
    """Make a call that the library may take long for, in a thread of its own; return what it returns, or raises.

    `wait` gets an event, waits for it, and says whether it came. If not, the call is left to itself: TimeoutError.
    """
    done = threading.Event()
    answers: list[Any] = []
    failures: list[BaseException] = []

    def make() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            failures.append(error)
        done.set()

    # A daemon: nothing waits for one that is late, nor does the end of the process.
    threading.Thread(target=make, name="librdkafka-call", daemon=True).start()
    if not wait(done):
        raise TimeoutError
    if failures:
        raise failures[0]
    return answers[0]
