"""Calls the receiver, and raises what its answer means for the event.

    2xx                                        done
    429, 503 with Retry-After                  later, when the receiver said: nothing is counted
    nothing listens, no such host, bad TLS     later: nothing was sent, and it is no event's fault
    408, 425, 5xx, 3xx, no or half an answer   failed: tried again, and parked in the end
    any other 4xx                              refused: parked at once, with what the receiver said

The calls run on an asyncio loop in a thread of its own, which can end a call at its deadline wherever it stands: also
in a DNS look-up, or while the receiver sends a byte a second. A synchronous client's timeout is one for each read.
"""

import asyncio
import concurrent.futures
import contextlib
import email.utils
import logging
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import httpx2

from brewctl import Later, Reject, UsageError, __version__
from brewctl.roles.webhook.circuit import Circuit
from brewctl.roles.webhook.receivers import Receiver, origin

logger = logging.getLogger(__name__)
# httpx2 logs the URL of each call, whose path is a secret with some receivers.
logging.getLogger("httpx2").setLevel(logging.WARNING)

_MOST_BYTES = 64 * 1024  # of an answer's body; the rest is not read
_SHOWN_CHARACTERS = 200
_LONGEST_PAUSE_S = 300.0  # the longest pause that a receiver may ask for
_PAUSE_S = 1.0
_SUCCESS, _REDIRECT, _CLIENT_ERROR, _SERVER_ERROR = range(200, 300), range(300, 400), range(400, 500), range(500, 600)
_TOO_MANY, _UNAVAILABLE = 429, 503
_TRY_AGAIN = frozenset({408, 425})


class SendError(Exception):
    """A call failed, and a retry may succeed. The message says why."""


@dataclass(frozen=True)
class _Answer:
    status: int
    retry_after: str
    location: str
    body: bytes  # its beginning


class Sender:
    """Calls one receiver, while its block runs. Thread-safe."""

    def __init__(self, receiver: Receiver, *, concurrency: int, circuit: Circuit | None = None) -> None:
        self._receiver = receiver
        self._circuit = circuit or Circuit()
        self._limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="webhook", daemon=True)
        whole_s = self._receiver.timeout_s
        self._client = httpx2.AsyncClient(
            # A shorter connect timeout: a host that can't be reached was sent nothing, unlike one that does not answer.
            timeout=httpx2.Timeout(whole_s, connect=whole_s / 2),
            limits=self._limits,
            follow_redirects=False,  # its target was not configured
            headers={"user-agent": f"brewctl/{__version__}", "accept-encoding": "identity"},
        )
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._look_up(), self._loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(self._receiver.timeout_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _look_up(self) -> None:
        """Log at the start if the host's name has no address yet: notifications wait until it has one."""
        url = self._receiver.url
        try:
            await self._loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except OSError as error:
            logger.warning("webhook: %s: the host's name leads nowhere yet: %s", self._receiver.name, _reason(error))

    def send(self, identity: str, body: str, headers: Mapping[str, str] | None = None, *, of: str = "") -> None:
        """Send a notification. `identity`: its idempotency key. `of`: its customer.

        Raises Later, Reject or SendError unless the receiver confirmed it.
        """
        if wait_s := self._circuit.enter(patience_s=_PAUSE_S):
            raise Later(wait_s, f"no calls for a while, after failures ({self._receiver.name})")
        try:
            self._judge(self._call(identity, body, headers or {}))
        except Later as later:
            if isinstance(later.__cause__, UsageError | concurrent.futures.CancelledError):
                self._circuit.abandoned()  # the receiver was not called, or did not get the time to answer
                raise
            seconds = self._failed(of or identity, later.why, away=not isinstance(later, _Asked), pause_s=later.seconds)
            raise Later(max(seconds, later.seconds), later.why) from later.__cause__
        except (Reject, SendError) as error:
            if seconds := self._failed(of or identity, str(error)):
                # The circuit is open: the failure does not count against this event.
                raise Later(seconds, str(error)) from error
            raise
        except BaseException:
            self._circuit.abandoned()
            raise
        if self._circuit.succeeded():
            logger.warning("webhook: %s takes notifications again", self._receiver.name)

    def _failed(self, party: str, why: str, *, away: bool = False, pause_s: float = 0.0) -> float:
        seconds = self._circuit.failed(party, away=away, pause_s=pause_s)
        if seconds:
            logger.warning("webhook: no calls for %.1f s: %s", seconds, why)
        return seconds

    def _call(self, identity: str, body: str, headers: Mapping[str, str]) -> _Answer:
        name = self._receiver.name
        own = {
            **headers,
            "content-type": "application/json",
            "idempotency-key": identity,
            "webhook-id": identity,
        }
        try:
            if self._receiver.signed:
                now = datetime.now(UTC)
                own["webhook-timestamp"] = str(int(now.timestamp()))
                own["webhook-signature"] = self._receiver.signatures(identity, now, body)
        except UsageError as error:  # a secret's file was replaced by a wrong one: nothing is sent unsigned
            logger.warning("webhook: nothing is sent: %s", error)
            raise Later(_PAUSE_S, str(error)) from error
        try:
            return asyncio.run_coroutine_threadsafe(self._post(body.encode(), own), self._loop).result()
        except concurrent.futures.CancelledError as error:
            raise Later(0, "the node stops") from error
        except TimeoutError as error:
            raise SendError(f"no whole answer within {self._receiver.timeout_s:g} s ({name})") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise Later(0, f"can't be reached: {_reason(error)} ({name})") from error
        except (httpx2.HTTPError, ssl.SSLError, OSError) as error:
            raise SendError(f"no whole answer: {_reason(error)} ({name})") from error

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> _Answer:
        async with (
            asyncio.timeout(self._receiver.timeout_s),
            self._client.stream("POST", self._receiver.url, content=body, headers=headers) as response,
        ):
            read = bytearray()
            async for chunk in response.aiter_raw():
                read += chunk
                if len(read) > _MOST_BYTES:
                    break
            return _Answer(
                response.status_code,
                response.headers.get("retry-after", ""),
                response.headers.get("location", ""),
                bytes(read[:_MOST_BYTES]),
            )

    def _judge(self, answer: _Answer) -> None:
        """Raise Later, Reject or SendError, unless the answer confirms the notification."""
        status = answer.status
        if status in _SUCCESS:
            return
        said = f"HTTP {status}{_shown(answer.body)} ({self._receiver.name})"
        if status == _TOO_MANY or (status == _UNAVAILABLE and answer.retry_after):
            raise _Asked(_pause_s(answer.retry_after), said)
        if status in _REDIRECT:
            target = self._target(answer.location)
            raise SendError(f"HTTP {status} points to {target}, which is never followed ({self._receiver.name})")
        if status in _CLIENT_ERROR and status not in _TRY_AGAIN:
            raise Reject(said)
        raise SendError(said)

    def _target(self, location: str) -> str:
        try:
            return _clean(origin(self._receiver.url.join(location)), _SHOWN_CHARACTERS) if location else "nowhere"
        except (httpx2.InvalidURL, ValueError):
            return "what is no URL"

    async def _close(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.aclose()


class _Asked(Later):
    """The receiver asks to be called later."""


def _pause_s(retry_after: str) -> float:
    """Return the seconds of a Retry-After, a number or a date, within bounds."""
    text = retry_after.strip()
    try:
        seconds = float(text) if text.isdecimal() else _until(text)
    except (ValueError, TypeError, OverflowError):
        seconds = _PAUSE_S
    return min(max(seconds, _PAUSE_S), _LONGEST_PAUSE_S)


def _until(text: str) -> float:
    at = email.utils.parsedate_to_datetime(text)
    return (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _shown(body: bytes) -> str:
    text = _clean(body[: 4 * _SHOWN_CHARACTERS].decode(errors="replace"), _SHOWN_CHARACTERS)
    return f": {text}" if text else ""


def _clean(text: str, most: int) -> str:
    """Return the beginning of a text on one line, without control characters that a terminal would act on."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:most]


def _reason(error: BaseException) -> str:
    return _clean(str(error) or type(error).__name__, _SHOWN_CHARACTERS)
