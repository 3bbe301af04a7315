"""The contract's service: what each call does, and the status that tells its caller what to do next."""

import time
from collections.abc import Callable

import grpc
import psycopg
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database, orders
from brewctl.delivery.database import Pool
from brewctl.delivery.watch import Watch
from brewctl.proto import orders_pb2, orders_pb2_grpc

logger = log.get(__name__)

NAME = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
AWAY = "the database is away: retry"
# The server's own words for: undone, not lost.
_BUSY = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
)
_FULL = "the database's disk is full: retry"
_PUSHBACK = "grpc-retry-pushback-ms"
_WARN_EVERY_S = 1.0


def ask_to_retry(context: grpc.ServicerContext, code: grpc.StatusCode, details: str, *, after_s: float) -> None:
    """End the call and say after how many seconds to try again: as google.rpc.RetryInfo, and as gRPC's own pushback."""
    detail = any_pb2.Any()
    delay = duration_pb2.Duration(nanos=round(after_s % 1 * 1e9), seconds=int(after_s))
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=details, details=[detail]))
    context.set_trailing_metadata((*status.trailing_metadata, (_PUSHBACK, str(round(after_s * 1000)))))
    context.abort(code, details)


class OrderService(orders_pb2_grpc.OrderServiceServicer):
    """The handlers. They run in threads; each takes a connection of the pool."""

    def __init__(self, settings: Settings, pool: Pool, watch: Watch, *, notify: Callable[[], None]) -> None:
        """`notify` is called after each commit."""
        self._settings = settings
        self._limits = settings.limits
        self._pool = pool
        self._watch = watch
        self._notify = notify
        self._warned_at = 0.0

    def Create(self, request: orders_pb2.CreateRequest, context: grpc.ServicerContext) -> orders_pb2.CreateResponse:
        """Acknowledge an order once it is committed, with its event, in PostgreSQL."""
        try:
            limit = self._limits.request_bytes
            if (size := request.ByteSize()) > limit:
                raise orders.InvalidOrderError(f"request has {size} bytes; the limit is {limit}")
            metadata = {key: value for key, value in reversed(context.invocation_metadata()) if isinstance(value, str)}
            new = orders.accept(request, tenant_id=metadata.get("x-tenant-id"), traceparent=metadata.get("traceparent"))
            self._turn_away_early(context)
            with self._pool.connection(min(self._limits.database_wait_s, _left_s(context))) as connection:
                until = time.monotonic() + self._limits.create_s
                # The handler outlives its caller's deadline: nothing is committed that nobody waits for.
                order = orders.create(
                    connection,
                    new,
                    topic=self._settings.topic,
                    left_s=lambda: min(until - time.monotonic(), _left_s(context)),
                )
        except (
            orders.InvalidOrderError,
            orders.KeyReusedError,
            orders.TooLateError,
            orders.CommitFailedError,
            psycopg.Error,
        ) as error:
            self._refuse(context, error)
        self._notify()
        return orders_pb2.CreateResponse(order_id=order.order_id, status=order.status)

    def Get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.GetResponse:
        """Read one order."""
        self._turn_away_early(context)
        try:
            with self._pool.connection(min(self._limits.database_wait_s, _left_s(context))) as connection:
                order = orders.get(connection, request.order_id)
        except psycopg.Error as error:
            self._refuse(context, error)
        if order is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no order {request.order_id[:80]!r}")
        return orders_pb2.GetResponse(order=order)

    def _turn_away_early(self, context: grpc.ServicerContext) -> None:
        # The call may have been queued since it was admitted.
        if _left_s(context) <= 0:
            self._refuse(context, orders.TooLateError())
        if self._watch.away:
            ask_to_retry(context, grpc.StatusCode.UNAVAILABLE, AWAY, after_s=self._limits.retry_after_s)

    def _refuse(self, context: grpc.ServicerContext, error: Exception) -> None:
        """Answer with the status that tells the caller what to do next. UNAVAILABLE: surely nothing was written."""
        code, details = grpc.StatusCode.UNAVAILABLE, _FULL if isinstance(error, psycopg.errors.DiskFull) else AWAY
        match error:
            case orders.InvalidOrderError():
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            case orders.KeyReusedError():
                context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
            case psycopg.errors.UndefinedTable():
                logger.error("create_failed", reason=str(error).splitlines()[0], hint="run `brewctl db init`")
                context.set_trailing_metadata(((_PUSHBACK, "-1"),))  # gRPC's word for: don't
                context.abort(grpc.StatusCode.INTERNAL, "a table is missing: run `brewctl db init`")
            case orders.CommitFailedError():
                logger.error("commit_failed", reason=str(error))
                code, details = grpc.StatusCode.INTERNAL, "the commit failed: retry with the same idempotency key"
            case _ if _left_s(context) <= 0:
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the commit")
            case orders.TooLateError():
                details = f"the database did not finish within {self._limits.create_s:g} s: retry"
            case error if isinstance(error, _BUSY):
                details = "the database is busy: retry"
            case error if not isinstance(error, database.UNAVAILABLE):
                logger.error("create_failed", reason=" ".join(str(error).split()))
                code, details = grpc.StatusCode.INTERNAL, "the commit failed: retry with the same idempotency key"
        if code is grpc.StatusCode.UNAVAILABLE:
            self._warn(details, error)
        ask_to_retry(context, code, details, after_s=self._limits.retry_after_s)

    def _warn(self, details: str, error: Exception) -> None:
        """Say why, at most once a second, where the watch has not said it."""
        now = time.monotonic()
        if not self._watch.away and now >= self._warned_at + _WARN_EVERY_S:
            self._warned_at = now
            logger.warning("turned_away", answer=details, reason=" ".join(str(error).split()))


def _left_s(context: grpc.ServicerContext) -> float:
    """How long the caller waits, in seconds: 0 once it has gone."""
    return float(context.time_remaining()) if context.is_active() else 0.0
