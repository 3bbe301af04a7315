"""The order-service: whether one listens at the address, is healthy, and answers a call."""

import socket
import time
import uuid
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from brewctl import certificates
from brewctl.client import channels, handshake
from brewctl.client.channels import THIS_MACHINE
from brewctl.config import DEFAULT_ORDER_ADDRS
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.proto import orders_pb2, orders_pb2_grpc
from brewctl.security import ORDER, PLAINTEXT, OrderSecurity

_SERVICE = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
_CONNECT_S = 2.0
_ANSWER_S = 2.0
_STATUS = health_pb2.HealthCheckResponse.ServingStatus
_CHECK = "order-service"


def check(address: str, security: OrderSecurity = PLAINTEXT) -> Iterator[Finding]:
    """Check the order-service at HOST:PORT with a health check, then with a call that needs its database."""
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
    channels.check(security, [address])
    by, metadata = channels.credentials(security), channels.token(security)
    with channels.open_channel(address, by) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=_SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            yield _no_handshake(address, security) or _stranger(address, error.code())
            return
        serves = answer.status == _STATUS.SERVING
        yield _reads(address, channel, metadata) if serves else _unhealthy(address, answer.status)
    if security.encrypts:
        yield from _certificate(address, security)


def _no_handshake(address: str, security: OrderSecurity) -> Finding | None:
    """Make a failure if TLS keeps a client with these settings from connecting; else None."""
    cause = handshake.why_not(address, security, within_s=_CONNECT_S)
    return fail(_CHECK, f"{address} {cause.text}", mend=cause.hint) if cause else None


def _certificate(address: str, security: OrderSecurity) -> Iterator[Finding]:
    """Report when the server's certificate expires; warn if it should have been replaced by now."""
    met = handshake.greet(address, security, within_s=_CONNECT_S)
    if not isinstance(met, handshake.Met):
        return
    found = f"{address} speaks TLS, with a certificate that expires {certificates.date(met.ends)}"
    if certificates.expires_soon(met.begins, met.ends, time.time()):
        yield warn(_CHECK, found, mend="replace the files of its --tls-cert and --tls-key: it needs no restart")
    else:
        yield ok(_CHECK, found)


def _start(host: str, port: str) -> str:
    """Say how to start an order-service there. `brewctl start` takes the first free port from the default one on."""
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


def _reads(address: str, channel: grpc.Channel, metadata: channels.Metadata) -> Finding:
    """Ask for an order with a random id. A service that works answers NOT_FOUND."""
    request = orders_pb2.GetRequest(order_id=str(uuid.uuid4()))
    try:
        orders_pb2_grpc.OrderServiceStub(channel).Get(request, timeout=_ANSWER_S, metadata=metadata)  # type: ignore[no-untyped-call]
    except grpc.RpcError as error:
        code, details = error.code(), " ".join(str(error.details()).split())
    else:
        code, details = grpc.StatusCode.OK, ""
    found = f"{address} is SERVING"
    if code is grpc.StatusCode.NOT_FOUND:
        return ok(_CHECK, f"{found}, and answers calls")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        mend = f"set {ORDER['order_token_file']} to a file with a token of its --tokens"
        return fail(_CHECK, f"{found}, and does not take the token: {details}", mend=mend)
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
    mend = f"find its process with `ss -ltnp sport = :{port}`, end it, or serve on another port"
    if code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}:
        return fail(_CHECK, f"{address} is a gRPC server, and no order-service", mend=mend)
    return fail(_CHECK, f"{address} takes connections and answers no health check ({code.name})", mend=mend)
