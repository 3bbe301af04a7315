"""An order-service: whether one answers at its address, says that it serves, and does."""

import socket
import uuid
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from brewctl.client import DIRECT, THIS_MACHINE
from brewctl.config import DEFAULT_ORDER_ADDRS
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.proto import orders_pb2, orders_pb2_grpc

_SERVICE = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
_CONNECT_S = 2.0
_ANSWER_S = 2.0
_STATUS = health_pb2.HealthCheckResponse.ServingStatus
_CHECK = "order-service"


def check(address: str) -> Iterator[Finding]:
    """Look for one at HOST:PORT: as a load balancer would, then with a call that needs its threads and its database."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except ConnectionRefusedError:
        yield warn(_CHECK, f"nothing listens on {address}", mend=_start(host, port))
        return
    except OSError as error:
        found = f"{address} can't be connected to ({(error.strerror or str(error)).lower()})"
        yield fail(_CHECK, found, mend="set BREW_ORDER_ADDRS to where the order-services are")
        return
    with grpc.insecure_channel(address, options=DIRECT) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=_SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            yield _stranger(address, error.code())
        else:
            yield _reads(address, channel) if answer.status == _STATUS.SERVING else _unhealthy(address, answer.status)


def _start(host: str, port: str) -> str:
    """Say how an order-service comes to listen there: `start` takes the first free port from the default one on."""
    if host not in THIS_MACHINE:
        return "start an order-service there, or set BREW_ORDER_ADDRS to where they are"
    if f"{host}:{port}" in DEFAULT_ORDER_ADDRS:
        return "run `brewctl start order`"
    return f"run `brewctl serve order --port {port}`, or set BREW_ORDER_ADDRS to where they are"


def _unhealthy(address: str, status: int) -> Finding:
    return fail(
        _CHECK,
        f"{address} is {_STATUS.Name(status)}: its database is away, or it stops",
        mend="see database_away in its log, which `brewctl logs` shows where it runs in the background",
    )


def _reads(address: str, channel: grpc.Channel) -> Finding:
    """Ask for an order that nobody has made: the answer is that it is not there."""
    request = orders_pb2.GetRequest(order_id=str(uuid.uuid4()))
    try:
        orders_pb2_grpc.OrderServiceStub(channel).Get(request, timeout=_ANSWER_S)  # type: ignore[no-untyped-call]
    except grpc.RpcError as error:
        code, details = error.code(), " ".join(str(error.details()).split())
    else:
        code, details = grpc.StatusCode.OK, ""
    found = f"{address} is SERVING"
    if code is grpc.StatusCode.NOT_FOUND:
        return ok(_CHECK, f"{found}, and answers calls")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return warn(
            _CHECK, f"{found}, and turns calls away ({details})", mend="start another with `brewctl start order`"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return fail(
            _CHECK,
            f"{found}, and answers no call within {_ANSWER_S:g} s",
            mend="see its log, as `brewctl logs` shows it, and pg_stat_activity for a session that holds a lock",
        )
    return fail(
        _CHECK,
        f"{found}, and answers calls {code.name} ({details})",
        mend="see its log, as `brewctl logs` shows it",
    )


def _stranger(address: str, code: grpc.StatusCode) -> Finding:
    port = address.rpartition(":")[2]
    mend = f"see who it is with `ss -ltnp sport = :{port}`, end it, or serve on another port"
    if code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}:
        return fail(_CHECK, f"{address} is a gRPC server, and no order-service", mend=mend)
    return fail(_CHECK, f"{address} takes connections and answers no health check ({code.name})", mend=mend)
