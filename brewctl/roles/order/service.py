"""The contract's service: what each call does, and the status that tells its caller what to do next."""

import time
from typing import NoReturn

import grpc
import psycopg
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database, orders
from brewctl.delivery.database import Pool
from brewctl.delivery.group_commit import GroupCommit
from brewctl.delivery.watch import Watch
from brewctl.proto import orders_pb2
from brewctl.proto.orders_pb2 import Order
from brewctl.roles.order.call import Call, Calls, Status

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


def retry_later(code: grpc.StatusCode, details: str, *, after_s: float) -> Status:
    """Say after how many seconds to try again: as google.rpc.RetryInfo, and as gRPC's own pushback."""
    detail = any_pb2.Any()
    delay = duration_pb2.Duration(nanos=round(after_s % 1 * 1e9), seconds=int(after_s))
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=details, details=[detail]))
    return Status(code, details, (*status.trailing_metadata, (_PUSHBACK, str(round(after_s * 1000)))))


def abort(context: grpc.ServicerContext, status: Status) -> NoReturn:
    """End the call from within its handler."""
    context.set_trailing_metadata(status.metadata)
    context.abort(status.code, status.details)
    raise AssertionError  # abort never returns


class OrderService:
    """The handlers. They run in threads: orders go through the writer, reads have connections of the pool."""

    def __init__(self, settings: Settings, pool: Pool, watch: Watch, writer: GroupCommit) -> None:
        self.calls = Calls(settings.limits.handler_threads, thread_name_prefix="handler")
        self._limits = settings.limits
        self._pool = pool
        self._watch = watch
        self._writer = writer
        self._warned_at = 0.0

    @property
    def in_hand(self) -> int:
        """How many calls are not answered yet."""
        return self.calls.in_hand + self._writer.waiting

    def create(self, request: orders_pb2.CreateRequest, call: Call) -> None:
        """Acknowledge an order once it is committed, with its event, in PostgreSQL. Returns before that."""
        try:
            limit = self._limits.request_bytes
            if (size := request.ByteSize()) > limit:
                raise orders.InvalidOrderError(f"request has {size} bytes; the limit is {limit}")
            metadata = call.metadata()
            new = orders.accept(request, tenant_id=metadata.get("x-tenant-id"), traceparent=metadata.get("traceparent"))
        except orders.InvalidOrderError as error:
            call.end(Status(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
            return
        if early := self._early(call):
            call.end(early)
            return
        self._writer.submit(_Create(self, new, call))

    def create_alone(self, new: orders.NewOrder, call: Call, doubtful: bool) -> None:
        """Acknowledge an order that its batch did not write; `doubtful`: it may have."""
        try:
            order = self._writer.create_alone(new, left_s=call.left_s, doubtful=doubtful)
        except (
            orders.KeyReusedError,
            orders.TooLateError,
            orders.CommitFailedError,
            psycopg.Error,
        ) as error:
            call.end(self._status_for(error, call))
        else:
            call.answer(_acknowledgement(order))

    def get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.GetResponse:
        """Read one order."""
        call = Call(context, within_s=self._limits.create_s)
        if early := self._early(call):
            abort(context, early)
        try:
            order = database.ask(
                self._pool,
                lambda connection: orders.get(connection, request.order_id),
                wait_s=min(self._limits.database_wait_s, call.left_s()),
            )
        except psycopg.Error as error:
            abort(context, self._status_for(error, call))
        if order is None:
            abort(context, Status(grpc.StatusCode.NOT_FOUND, f"no order {request.order_id[:80]!r}"))
        return orders_pb2.GetResponse(order=order)

    def _early(self, call: Call) -> Status | None:
        """Say how a call ends that need not be begun: it may have been queued since it was admitted."""
        if call.left_s() <= 0:
            return self._status_for(orders.TooLateError(), call)
        if self._watch.away:
            return retry_later(grpc.StatusCode.UNAVAILABLE, AWAY, after_s=self._limits.retry_after_s)
        return None

    def _status_for(self, error: Exception, call: Call) -> Status:
        """Tell the caller what to do next. UNAVAILABLE: surely nothing was written."""
        code, details = grpc.StatusCode.UNAVAILABLE, _FULL if isinstance(error, psycopg.errors.DiskFull) else AWAY
        match error:
            case orders.KeyReusedError():
                return Status(grpc.StatusCode.ALREADY_EXISTS, str(error))
            case psycopg.errors.UndefinedTable():
                logger.error("create_failed", reason=str(error).splitlines()[0], hint="run `brewctl db init`")
                never = ((_PUSHBACK, "-1"),)  # gRPC's word for: don't
                return Status(grpc.StatusCode.INTERNAL, "a table is missing: run `brewctl db init`", never)
            case orders.CommitFailedError():
                logger.error("commit_failed", reason=str(error))
                code, details = grpc.StatusCode.INTERNAL, "the commit failed: retry with the same idempotency key"
            case _ if call.given_up:
                return Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the commit")
            case orders.TooLateError():
                details = f"the database did not finish within {self._limits.create_s:g} s: retry"
            case error if isinstance(error, _BUSY):
                details = "the database is busy: retry"
            case error if not isinstance(error, database.UNAVAILABLE):
                logger.error("create_failed", reason=" ".join(str(error).split()))
                code, details = grpc.StatusCode.INTERNAL, "the commit failed: retry with the same idempotency key"
        if code is grpc.StatusCode.UNAVAILABLE:
            self._warn(details, error)
        return retry_later(code, details, after_s=self._limits.retry_after_s)

    def _warn(self, details: str, error: Exception) -> None:
        """Say why, at most once a second, where the watch has not said it."""
        now = time.monotonic()
        if not self._watch.away and now >= self._warned_at + _WARN_EVERY_S:
            self._warned_at = now
            logger.warning("turned_away", answer=details, reason=" ".join(str(error).split()))


class _Create:
    """An order on its way through the writer. It outlives its caller's deadline, but is not written after that."""

    __slots__ = ("_call", "_service", "left_s", "new")

    def __init__(self, service: OrderService, new: orders.NewOrder, call: Call) -> None:
        self._service = service
        self._call = call
        self.new = new
        self.left_s = call.left_s

    def on_written(self) -> None:
        self._call.answer(_acknowledgement(self.new.order))

    def on_unwritten(self, doubtful: bool) -> None:
        self._service.calls.submit(self._service.create_alone, self.new, self._call, doubtful)


def _acknowledgement(order: Order) -> bytes:
    return orders_pb2.CreateResponse(order_id=order.order_id, status=order.status).SerializeToString()
