"""The contract's service: what each call does, and the status that tells its caller what to do next."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Pool, rights
from brewctl.delivery.database.availability import Availability
from brewctl.delivery.orders import acceptance, cancellation, refusals, store
from brewctl.delivery.orders.group_commit import GroupCommit
from brewctl.proto import orders_pb2
from brewctl.proto.orders_pb2 import CancelResponse, Order
from brewctl.roles.order.call import Call, Status
from brewctl.roles.order.cancelling import Cancelling

logger = log.get(__name__)

NAME = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
AWAY = "the database is away: retry"
_FULL = "the database's disk is full: retry"
_SAME_KEY = "retry with the same idempotency key"
_PUSHBACK = "grpc-retry-pushback-ms"
_NEVER = ((_PUSHBACK, "-1"),)  # gRPC's word for: don't


def retry_later(code: grpc.StatusCode, details: str, *, after_s: float) -> Status:
    """Say after how many seconds to try again: as google.rpc.RetryInfo, and as gRPC's own pushback."""
    detail = any_pb2.Any()
    delay = duration_pb2.Duration(nanos=round(after_s % 1 * 1e9), seconds=int(after_s))
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=details, details=[detail]))
    return Status(code, details, (*status.trailing_metadata, (_PUSHBACK, str(round(after_s * 1000)))))


class OrderService:
    """Create, Cancel and Get, once their message is there. Creates go to the writer, the others to threads."""

    def __init__(
        self, settings: Settings, reading: Pool, watch: Availability, writer: GroupCommit, cancelling: Cancelling
    ) -> None:
        """Read with connections of `reading`."""
        self._limits = settings.limits
        self._reading = reading
        self._watch = watch
        self._writer = writer
        self._cancelling = cancelling
        self._readers = ThreadPoolExecutor(settings.limits.reading_threads, thread_name_prefix="reading")
        self._lock = threading.Lock()
        self._reads = 0
        self._turned_away = log.Seldom(logger, "turned_away")
        self._failed = log.Seldom(logger, "create_failed")
        self._commit_failed = log.Seldom(logger, "commit_failed")
        self._refused = log.Seldom(logger, "order_refused")

    @property
    def in_hand(self) -> int:
        """How many calls are not answered yet."""
        return self._reads + self._writer.waiting + self._cancelling.waiting

    def create(self, request: orders_pb2.CreateRequest, call: Call) -> None:
        """Acknowledge an order once it is committed, with its event, in PostgreSQL. Returns before that."""
        try:
            self._check_size(request.ByteSize())
            metadata = call.metadata()
            new = acceptance.accept(
                request,
                tenant_id=call.tenant or metadata.get("x-tenant-id"),
                traceparent=call.context or metadata.get("traceparent"),
            )
        except acceptance.InvalidOrderError as error:
            call.end(Status(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
            return
        if early := self._early(call):
            call.end(early)
            return
        self._writer.submit(_Create(self, new, call))

    def cancel(self, request: orders_pb2.CancelRequest, call: Call) -> None:
        """Acknowledge a cancel once it is committed, with its event, in PostgreSQL. Returns before that.

        As with Get, an order is anyone's who knows its id, and with tokens its own tenant's alone: to others it is not
        there. The event has the tenant of the order.
        """
        try:
            self._check_size(request.ByteSize())
            traceparent = call.context or call.metadata().get("traceparent")
            wish = cancellation.accept(request, tenant_id=call.tenant, traceparent=traceparent)
        except acceptance.InvalidOrderError as error:
            call.end(Status(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
            return
        if early := self._early(call):
            call.end(early)
            return

        def told(end: CancelResponse | Exception | None) -> None:
            match end:
                case CancelResponse():
                    call.answer(end.SerializeToString())
                case None:
                    call.end(_no_order(wish.order_id))
                case cancellation.UnknownStatusError():
                    call.end(Status(grpc.StatusCode.FAILED_PRECONDITION, str(end), _NEVER))
                case cancellation.OlderPublisherError():
                    call.end(retry_later(grpc.StatusCode.UNAVAILABLE, str(end), after_s=self._limits.retry_after_s))
                case Exception():
                    call.end(self.status_for(end, call, again="retry"))

        self._cancelling.submit(wish, call, told)

    def get(self, request: orders_pb2.GetRequest, call: Call) -> None:
        """Read one order, in a thread that waits for the database. Returns before that."""
        with self._lock:
            self._reads += 1
        self._readers.submit(self._read, request, call).add_done_callback(lambda _done: self._has_read())

    def shutdown(self) -> None:
        """End the threads that read."""
        self._readers.shutdown()
        self._cancelling.shutdown()

    def status_for(self, error: Exception, call: Call, *, again: str = _SAME_KEY) -> Status:
        """Tell the caller what to do next. UNAVAILABLE: surely nothing was written. `again`: how to try it again."""
        if stands := self._never(error):
            return stands
        code, details = grpc.StatusCode.UNAVAILABLE, _FULL if isinstance(error, psycopg.errors.DiskFull) else AWAY
        match error:
            case store.CommitFailedError():
                self._commit_failed.warn(reason=str(error))
                code, details = grpc.StatusCode.INTERNAL, f"the commit failed: {again}"
            case _ if call.given_up:
                return Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the commit")
            case store.KeyHeldError():
                code, details = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
            case store.TooLateError():
                details = f"the database did not finish within {self._limits.create_s:g} s: retry"
            case error if isinstance(error, store.UNDONE):
                details = "the database is busy: retry"
            case error if refusals.lacks_right(error):
                self._failed.warn(reason=refusals.words(error), hint=rights.HINT)
                return retry_later(
                    code, "the service has no right to do this: retry", after_s=self._limits.retry_after_s
                )
            case error if not isinstance(error, database.UNAVAILABLE):
                self._failed.warn(reason=f"{type(error).__name__}: {log.reason(error)}")
                logger.debug("create_failed", exc_info=error)
                code, details = grpc.StatusCode.INTERNAL, f"the commit failed: {again}"
        if code is grpc.StatusCode.UNAVAILABLE and not self._watch.away:
            # While the database is away, `Availability` has logged that already.
            self._turned_away.warn(answer=details, reason=log.reason(error))
        return retry_later(code, details, after_s=self._limits.retry_after_s)

    def _never(self, error: Exception) -> Status | None:
        """Return the status of a call that fails however often it is retried, in PostgreSQL's words; else None."""
        if isinstance(error, store.KeyReusedError):
            return Status(grpc.StatusCode.ALREADY_EXISTS, str(error))
        if isinstance(error, psycopg.errors.UndefinedTable):
            self._failed.warn(reason=str(error).splitlines()[0], hint="run `brewctl db init`")
            return Status(grpc.StatusCode.INTERNAL, "a table is missing: run `brewctl db init`", _NEVER)
        if not refusals.never_taken(error):
            return None
        said = refusals.words(error)
        if refusals.is_text(error):
            return Status(grpc.StatusCode.INVALID_ARGUMENT, f"postgres can't store this text: {said}")
        self._refused.warn(reason=said, sqlstate=error.sqlstate if isinstance(error, psycopg.Error) else None)
        return Status(grpc.StatusCode.FAILED_PRECONDITION, f"postgres does not take this order: {said}", _NEVER)

    def _read(self, request: orders_pb2.GetRequest, call: Call) -> None:
        call.guarded(lambda: self._answer_get(request, call))

    def _answer_get(self, request: orders_pb2.GetRequest, call: Call) -> None:
        if early := self._early(call):
            call.end(early)
            return
        try:
            order = database.ask(
                self._reading,
                lambda connection: store.get(connection, request.order_id, tenant_id=call.tenant),
                wait_s=min(self._limits.database_wait_s, call.left_s()),
            )
        except psycopg.Error as error:
            call.end(self.status_for(error, call))
            return
        if order is None:
            call.end(_no_order(request.order_id))
        else:
            call.answer(orders_pb2.GetResponse(order=order).SerializeToString())

    def _check_size(self, size: int) -> None:
        limit = self._limits.request_bytes
        if size > limit:
            raise acceptance.InvalidOrderError(f"request has {size} bytes; the limit is {limit}")

    def _has_read(self) -> None:
        with self._lock:
            self._reads -= 1

    def _early(self, call: Call) -> Status | None:
        """Return the status of a call that is too late, or whose database is away; None where it can be begun."""
        if call.left_s() <= 0:
            return self.status_for(store.TooLateError(), call)
        if self._watch.away:
            return retry_later(grpc.StatusCode.UNAVAILABLE, AWAY, after_s=self._limits.retry_after_s)
        return None


def _no_order(order_id: str) -> Status:
    return Status(grpc.StatusCode.NOT_FOUND, f"no order {order_id[:80]!r}")


class _Create:
    """An order on its way through the writer. It outlives its caller's deadline, but is not written after that."""

    __slots__ = ("_call", "_service", "left_s", "new")

    def __init__(self, service: OrderService, new: acceptance.NewOrder, call: Call) -> None:
        self._service = service
        self._call = call
        self.new = new
        self.left_s = call.left_s

    def on_created(self, order: Order) -> None:
        self._call.answer(orders_pb2.CreateResponse(order_id=order.order_id, status=order.status).SerializeToString())

    def on_failed(self, error: Exception) -> None:
        self._call.end(self._service.status_for(error, self._call))
