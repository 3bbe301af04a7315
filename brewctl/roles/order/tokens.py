"""Bearer tokens and their tenants, from a file that is read again when it changes.

    # TENANT TOKEN, or its digest: printf %s "$TOKEN" | sha256sum
    brew   5hVq…
    acme   sha256:9f86d0…

A tenant may have several tokens, so that a new one is valid before the old one is removed. Only digests are kept in
memory. A token is looked up by its digest, so the time of a look-up tells an attacker nothing about the tokens.
"""

import hashlib
import re
from collections.abc import Callable

import grpc

from brewctl import certificates, log
from brewctl.certificates import Named
from brewctl.errors import UsageError
from brewctl.roles import listening
from brewctl.roles.order import health
from brewctl.roles.order.call import Call, method
from brewctl.roles.order.status import Status

logger = log.get(__name__)

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
# RFC 6750's letters. Shorter ones can be guessed.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_SCHEME = "bearer "
_OPEN = f"/{health.NAME}/"
_ASK = "send `authorization: Bearer TOKEN`"


class Tokens:
    """The tenants by the digests of their tokens, as of the last time that the file could be used."""

    def __init__(self, path: str) -> None:
        """Read the file. Raises UsageError. `look` may be called by one thread alone."""
        self._file = Named(listening.TOKENS, path)
        self._stamp = certificates.stamp(path)
        self._tenants = parse(self._file)
        self._seen = self._stamp
        self._said = ""
        if certificates.readable_by_all(path):
            logger.warning("tokens_readable_by_all", file=path, hint=f"chmod 600 {path}")

    def tenant_of(self, token: str) -> str | None:
        """Return the tenant of a token; None for an unknown one."""
        return self._tenants.get(_digest(token))

    def look(self) -> None:
        """Read the file again if it has changed. One that can't be used is logged once and changes nothing."""
        now = certificates.stamp(self._file.path)
        # Not while it is being written: half of a file can be valid, and would lock out the other tenants.
        resting, self._seen = now == self._seen, now
        if now == self._stamp or not resting:
            return
        try:
            found = parse(self._file)
        except UsageError as error:
            if self._said != error.message:
                self._said = error.message
                logger.warning("tokens_unusable", reason=error.message, hint="those read before stay in force")
            return
        self._stamp, self._tenants, self._said = now, found, ""
        logger.info("tokens_read", tokens=len(found), tenants=len(set(found.values())))


def parse(file: Named) -> dict[bytes, str]:
    """Return the tenants by their tokens' digests. Raises UsageError, which names a line but shows nothing of it."""
    content = certificates.read(file)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise file.refusal("is no UTF-8 text") from None
    if not content.endswith(b"\n"):
        # A token that is cut off looks like a token. The last newline is the only sign that the file is complete.
        raise file.refusal("does not end with a newline: it may not be written to its end")
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _TENANT.fullmatch(words[0]):  # noqa: PLR2004
            raise file.refusal(f"line {number} is not TENANT TOKEN")
        tenant, token = words
        if known := _DIGEST.fullmatch(token):
            digest = bytes.fromhex(known[1])
        elif _TOKEN.fullmatch(token):
            digest = _digest(token)
        else:
            hint = "make one with `openssl rand -hex 32`"
            raise file.refusal(f"line {number} has no token: 16 or more of letters, digits, '._~+/-'", hint=hint)
        if found.setdefault(digest, tenant) != tenant:
            raise file.refusal(f"line {number} has the token of another tenant")
    if not found:
        raise file.refusal("has no line TENANT TOKEN")
    return found


class TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Refuses calls without a valid token; others get its tenant. Health needs none: it tells nothing of orders."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._refused = log.Seldom(logger, "call_refused")

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the call's method, with the tenant noted, or what refuses the call."""
        if handler_call_details.method.startswith(_OPEN):
            return continuation(handler_call_details)
        told = self._whose(handler_call_details.invocation_metadata)
        if isinstance(told, Status):
            self._refused.warn(answer=told.details, code=told.code.name)
            return method(lambda call: call.end(told))
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        begin: Callable[[Call], None] = handler.stream_stream

        def begin_as_tenant(call: Call) -> None:
            call.tenant = told
            begin(call)

        return method(begin_as_tenant)

    def _whose(self, metadata: tuple[tuple[str, str | bytes], ...]) -> str | Status:
        sent = {value for key, value in metadata if key == "authorization"}
        if len(sent) != 1:
            return Status(grpc.StatusCode.UNAUTHENTICATED, f"{'no token' if not sent else 'two tokens'}: {_ASK}")
        (header,) = sent
        if not isinstance(header, str) or header[: len(_SCHEME)].lower() != _SCHEME:
            return Status(grpc.StatusCode.UNAUTHENTICATED, f"no bearer token: {_ASK}")
        tenant = self._tokens.tenant_of(header[len(_SCHEME) :].strip())
        if tenant is None:
            return Status(grpc.StatusCode.UNAUTHENTICATED, "the token is not known here")
        if any(key == "x-tenant-id" and value != tenant for key, value in metadata):
            return Status(grpc.StatusCode.PERMISSION_DENIED, "x-tenant-id is not the tenant of the token")
        return tenant


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
