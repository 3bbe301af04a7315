"""Server reflection: answered by grpcio's servicer, in calls of our own, so that an open stream holds no thread."""

from collections.abc import Iterable

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from brewctl.roles.order.call import Call, method
from brewctl.roles.order.status import Status

NAME = reflection.SERVICE_NAME
_DONE = Status(grpc.StatusCode.OK, "")


class Reflection:
    """Answers the requests of a stream one after the other."""

    def __init__(self, services: Iterable[str]) -> None:
        self._servicer = reflection.ReflectionServicer(tuple(services))
        self.methods = {"ServerReflectionInfo": method(self._begin)}

    def _begin(self, call: Call) -> None:
        call.receive(lambda message: self._answer(message, call))

    def _answer(self, message: bytes | None, call: Call) -> None:
        if message is None:
            call.end(_DONE)
            return
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(message)
        except DecodeError:
            call.end(Status(grpc.StatusCode.INVALID_ARGUMENT, "the message can't be read"))
            return
        (response,) = self._servicer.ServerReflectionInfo(iter([request]), None)
        call.at_rest = _DONE
        call.send(response.SerializeToString(), lambda: self._begin(call))
