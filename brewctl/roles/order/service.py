"""OrderService, as the contract has it: what each call does, and the status that tells its caller what to do next."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Pool, rights
from brewctl.delivery.database.availability import Availability
from brewctl.delivery.orders import acceptance, cancellation, refusals, store
from brewctl.delivery.orders.group_commit import GroupCommit
from brewctl.proto import orders_pb2
from brewctl.proto.orders_pb2 import CancelResponse, Order
from brewctl.roles.order.admission import Admission, Slot
from brewctl.roles.order.call import Call
from brewctl.roles.order.cancelling import Cancelling
from brewctl.roles.order.status import NEVER, Status, retry_later

logger = log.get(__name__)

NAME = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
_FULL = "the database's disk is full: retry"
_SAME_KEY = "retry with the same idempotency key"


class OrderService:
    """Create, Cancel and Get, once their message was received. The writer writes orders; threads cancel and read."""

    def __init__(
        self,
        settings: Settings,
        admission: Admission,
        *,
        reading: Pool,
        availability: Availability,
        writer: GroupCommit,
        cancelling: Cancelling,
    ) -> None:
        """Read with connections of `reading`."""
        self._limits = settings.limits
        self._admission = admission
        self._reading = reading
        self._availability = availability
        self._writer = writer
        self._cancelling = cancelling
        self._readers = ThreadPoolExecutor(settings.limits.reading_threads, thread_name_prefix="reading")
        self._turned_away = log.Seldom(logger, "turned_away")
        self._failed = log.Seldom(logger, "create_failed")
        self._commit_failed = log.Seldom(logger, "commit_failed")
        self._refused = log.Seldom(logger, "order_refused")

    def create(self, request: orders_pb2.CreateRequest, call: Call) -> None:
        """Hand an order to the writer. The call is answered once the order and its event are committed."""
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
        self._writer.submit(_Create(self, new, call, self._admission.enter()))

    def cancel(self, request: orders_pb2.CancelRequest, call: Call) -> None:
        """Cancel an order in a thread. The call is answered once the cancel and its event are committed.

        As with Get, any caller who knows an order's id may cancel it. With tokens only its own tenant may: others get
        NOT_FOUND. The event has the tenant of the order.
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

        slot = self._admission.enter()

        def told(end: CancelResponse | Exception | None) -> None:
            slot.release()
            match end:
                case CancelResponse():
                    call.answer(end.SerializeToString())
                case None:
                    call.end(_no_order(wish.order_id))
                case cancellation.UnknownStatusError():
                    call.end(Status(grpc.StatusCode.FAILED_PRECONDITION, str(end), NEVER))
                case cancellation.OlderPublisherError():
                    call.end(retry_later(grpc.StatusCode.UNAVAILABLE, str(end), after_s=self._limits.retry_after_s))
                case Exception():
                    call.end(self.status_for(end, call, again="retry"))

        self._cancelling.submit(wish, call, told)

    def get(self, request: orders_pb2.GetRequest, call: Call) -> None:
        """Read an order in a thread, which answers the call."""
        self._readers.submit(self._read, request, call, self._admission.enter())

    def shutdown(self) -> None:
        """End the threads without waiting. Calls that no thread has begun are dropped: their clients are gone."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._cancelling.shutdown()

    def status_for(self, error: Exception, call: Call, *, again: str = _SAME_KEY) -> Status:
        """Return how a call ends that failed. UNAVAILABLE promises that nothing was written. `again`: how to retry."""
        if stands := self._never(error):
            return stands
        full = isinstance(error, psycopg.errors.DiskFull)
        code, details = grpc.StatusCode.UNAVAILABLE, _FULL if full else self._admission.away.details
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
        if code is grpc.StatusCode.UNAVAILABLE and not self._availability.away:
            # If the database is away, `Availability` has logged that.
            self._turned_away.warn(answer=details, reason=log.reason(error))
        return retry_later(code, details, after_s=self._limits.retry_after_s)

    def _never(self, error: Exception) -> Status | None:
        """Return the status, in PostgreSQL's words, of a call that no retry can help; else None."""
        if isinstance(error, store.KeyReusedError):
            return Status(grpc.StatusCode.ALREADY_EXISTS, str(error))
        if isinstance(error, psycopg.errors.UndefinedTable):
            self._failed.warn(reason=str(error).splitlines()[0], hint="run `brewctl db init`")
            return Status(grpc.StatusCode.INTERNAL, "a table is missing: run `brewctl db init`", NEVER)
        if not refusals.never_taken(error):
            return None
        said = refusals.words(error)
        if refusals.is_text(error):
            return Status(grpc.StatusCode.INVALID_ARGUMENT, f"postgres can't store this text: {said}")
        self._refused.warn(reason=said, sqlstate=error.sqlstate if isinstance(error, psycopg.Error) else None)
        return Status(grpc.StatusCode.FAILED_PRECONDITION, f"postgres does not take this order: {said}", NEVER)

    def _read(self, request: orders_pb2.GetRequest, call: Call, slot: Slot) -> None:
        try:
            call.guarded(lambda: self._answer_get(request, call))
        finally:
            slot.release()

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

    def _early(self, call: Call) -> Status | None:
        """Return how a call ends whose time is up or whose database is away; None if its work can begin."""
        if call.left_s() <= 0:
            return self.status_for(store.TooLateError(), call)
        return self._admission.away if self._availability.away else None


def _no_order(order_id: str) -> Status:
    return Status(grpc.StatusCode.NOT_FOUND, f"no order {order_id[:80]!r}")


class _Create:
    """An order in the writer's hands. It may outlive its caller's deadline, but is not written after that."""

    __slots__ = ("_call", "_service", "_slot", "left_s", "new")

    def __init__(self, service: OrderService, new: acceptance.NewOrder, call: Call, slot: Slot) -> None:
        self._service = service
        self._call = call
        self._slot = slot
        self.new = new
        self.left_s = call.left_s

    # The slot is released before the client is answered, which may then call again at once.

    def on_created(self, order: Order) -> None:
        self._slot.release()
        self._call.answer(orders_pb2.CreateResponse(order_id=order.order_id, status=order.status).SerializeToString())

    def on_failed(self, error: Exception) -> None:
        self._slot.release()
        self._call.end(self._service.status_for(error, self._call))
