"""How a call ends that is not answered with a message, and what its client is told to do next."""

from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

_PUSHBACK = "grpc-retry-pushback-ms"
NEVER = ((_PUSHBACK, "-1"),)  # metadata that tells a gRPC client not to retry


class Status(NamedTuple):
    """A status code with its details; `metadata` is sent behind it."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()


def retry_later(code: grpc.StatusCode, details: str, *, after_s: float) -> Status:
    """Say after how many seconds to try again: as google.rpc.RetryInfo, and as gRPC's own pushback."""
    detail = any_pb2.Any()
    delay = duration_pb2.Duration(nanos=round(after_s % 1 * 1e9), seconds=int(after_s))
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=details, details=[detail]))
    return Status(code, details, (*status.trailing_metadata, (_PUSHBACK, str(round(after_s * 1000)))))
