"""order-service: takes orders over gRPC, and publishes their events in the background.

    client ──Create──► gRPC handlers ──one commit: orders + outbox──► PostgreSQL
                            │                                             ▲
                            └── notify ──► publisher ──fetch, mark────────┘
                                               └──────records───────────► Kafka

The handler never talks to Kafka: a Kafka outage leaves Create as fast as before. On a stop the
server refuses new calls and finishes the ones in hand, then the publisher sends what they left.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from psycopg_pool import PoolTimeout

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import database, orders
from brewctl.delivery.broker import require_topic
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox import Publisher
from brewctl.errors import BrewError, UnreachableError
from brewctl.lifecycle import run_together
from brewctl.proto import orders_pb2, orders_pb2_grpc

logger = log.get(__name__)

SERVICE = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
# Above the request bound, so that a large request is answered INVALID_ARGUMENT with the reason.
_TRANSPORT_BYTES = 5 * 1024 * 1024


def run(settings: Settings, stop: threading.Event, *, node: str, host: str, port: int) -> None:
    """Serve until `stop` is set; `port` 0 takes a free one.

    Raises UnreachableError without PostgreSQL, BrewError for a taken port, a missing table or topic.
    """
    limits = settings.limits
    with database.open_pool(settings, name=node, size=limits.handler_threads + 1) as pool:
        _look_at_kafka(settings)
        publisher = Publisher(settings, pool, node=node)
        server = _Server(settings, OrderService(settings, pool, publisher), host=host, port=port)
        log.say(node, f"order-service listening on {server.address}")
        drained = threading.Event()

        def serve() -> None:
            stop.wait()
            server.drain(limits.drain_s / 2)
            drained.set()
            publisher.notify()

        run_together(
            {"server": serve, "publisher": lambda: publisher.run(drained)}, stop, drain_timeout_s=limits.drain_s
        )
        log.say(node, "order-service stopped.")


def _look_at_kafka(settings: Settings) -> None:
    try:
        require_topic(settings)
    except UnreachableError as error:
        # Orders are accepted without Kafka: a replica may be started, or restarted, while it is away.
        logger.warning("kafka_unreachable", reason=error.message, hint=error.hint)


class OrderService(orders_pb2_grpc.OrderServiceServicer):
    """The contract's service. Status codes: see `_refuse`."""

    def __init__(self, settings: Settings, pool: Pool, publisher: Publisher) -> None:
        self._settings = settings
        self._pool = pool
        self._publisher = publisher

    def Create(self, request: orders_pb2.CreateRequest, context: grpc.ServicerContext) -> orders_pb2.CreateResponse:
        """Acknowledge an order once it is committed, with its event, in PostgreSQL."""
        try:
            limit = self._settings.limits.request_bytes
            if (size := request.ByteSize()) > limit:
                raise orders.InvalidOrderError(f"request has {size} bytes; the limit is {limit}")
            metadata = {key: value for key, value in reversed(context.invocation_metadata()) if isinstance(value, str)}
            new = orders.accept(request, tenant_id=metadata.get("x-tenant-id"), traceparent=metadata.get("traceparent"))
            with self._pool.connection() as connection:
                # The handler outlives its caller's deadline: don't commit what nobody waits for.
                remaining_s = context.time_remaining()
                if not context.is_active() or (remaining_s is not None and remaining_s <= 0):
                    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the commit")
                order = orders.create(connection, new, topic=self._settings.topic)
        except (orders.InvalidOrderError, orders.KeyReusedError, psycopg.Error) as error:
            _refuse(context, error)
        self._publisher.notify()
        return orders_pb2.CreateResponse(order_id=order.order_id, status=order.status)

    def Get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.GetResponse:
        """Read one order."""
        try:
            with self._pool.connection() as connection:
                order = orders.get(connection, request.order_id)
        except psycopg.Error as error:
            _refuse(context, error)
        if order is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no order {request.order_id[:80]!r}")
        return orders_pb2.GetResponse(order=order)


def _refuse(context: grpc.ServicerContext, error: Exception) -> None:
    """Answer with the status that tells the caller what to do next."""
    match error:
        case orders.InvalidOrderError():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        case orders.KeyReusedError():
            context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        case PoolTimeout():
            context.abort(grpc.StatusCode.UNAVAILABLE, "the database is away: retry")
        case psycopg.errors.UndefinedTable():
            logger.error("create_failed", reason=str(error).splitlines()[0], hint="run `brewctl db init`")
            context.abort(grpc.StatusCode.INTERNAL, "a table is missing: run `brewctl db init`")
        case _:
            logger.error("create_failed", reason=" ".join(str(error).split()))
            context.abort(grpc.StatusCode.INTERNAL, "the commit failed: retry with the same idempotency key")


class _Server:
    """A gRPC server with health and reflection on one port of its own."""

    def __init__(self, settings: Settings, service: OrderService, *, host: str, port: int) -> None:
        limits = settings.limits
        self._server = grpc.server(
            ThreadPoolExecutor(limits.handler_threads, thread_name_prefix="handler"),
            maximum_concurrent_rpcs=limits.concurrent_calls,
            options=[
                # On by default: a second server on the port would start, and steal half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _TRANSPORT_BYTES),
            ],
        )
        orders_pb2_grpc.add_OrderServiceServicer_to_server(service, self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise BrewError(
                f"port {port} on {host} can't be listened on", hint="is it taken? choose another with --port"
            )
        self._server.start()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.address = f"{host}:{bound}"

    def drain(self, within_s: float) -> None:
        """Refuse new calls and wait, at most `within_s` seconds, for the ones in hand."""
        self._health.enter_graceful_shutdown()
        self._server.stop(within_s).wait()
