"""grpc.health.v1: whether this replica takes orders, for clients that ask once (Check) and that watch (Watch).

grpcio's own servicer sends to its watchers while it holds a lock that the serving thread needs when a watcher hangs up,
and waits until each watcher has read the last status. A client that reads nothing, or two that hang up at the wrong
moment, stop the whole server. Here no thread waits for a watcher: a slow one gets the newest status once it has read
the one before.
"""

import threading

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from brewctl.roles.order.call import Call, with_message
from brewctl.roles.order.status import Status

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class HealthService:
    """Serves the status of each service by its name; "" is the whole server. Safe from any thread."""

    def __init__(self, *, most: int, full: Status) -> None:
        """Take `most` watchers at a time; a further one's call ends with `full`."""
        self._most = most
        self._full = full
        self._lock = threading.Lock()  # never held while a status is sent
        self._statuses: dict[str, HealthCheckResponse] = {}
        self._watchers: set[_Watcher] = set()
        self._stopping = False
        self.methods = {
            "Check": with_message(health_pb2.HealthCheckRequest.FromString, self._check),
            "List": with_message(health_pb2.HealthListRequest.FromString, self._list),
            "Watch": with_message(health_pb2.HealthCheckRequest.FromString, self._watch),
        }

    def set(self, service: str, *, serving: bool) -> None:
        """Set a service's status and send it to its watchers. Ignored after `stop`."""
        with self._lock:
            if self._stopping:
                return
            self._statuses[service] = HealthCheckResponse(
                status=HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
            )
        self._tell()

    def stop(self) -> None:
        """Set every service to NOT_SERVING, for good."""
        with self._lock:
            self._stopping = True
            self._statuses = {
                name: HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING) for name in self._statuses
            }
        self._tell()

    def end_watches(self, status: Status) -> None:
        """End the watchers' calls, which a server that stops would wait for."""
        with self._lock:
            watchers = list(self._watchers)
        for each in watchers:
            each.end(status)

    def status(self, service: str) -> HealthCheckResponse | None:
        """Return a service's status; None for an unknown name."""
        return self._statuses.get(service)

    @property
    def watchers(self) -> int:
        """How many clients watch."""
        return len(self._watchers)

    def _tell(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for each in watchers:
            each.call.guarded(each.tell)

    def _check(self, request: health_pb2.HealthCheckRequest, call: Call) -> None:
        if known := self.status(request.service):
            call.answer(known.SerializeToString())
        else:
            call.end(Status(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r}"))

    def _list(self, _request: health_pb2.HealthListRequest, call: Call) -> None:
        call.answer(health_pb2.HealthListResponse(statuses=self._statuses).SerializeToString())

    def _watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> None:
        watcher = _Watcher(self, request.service, call)
        with self._lock:
            if room := len(self._watchers) < self._most:
                self._watchers.add(watcher)
        if room:
            call.add_done_callback(lambda _call: self._gone(watcher))
            watcher.tell()
        else:
            call.end(self._full)

    def _gone(self, watcher: "_Watcher") -> None:
        with self._lock:
            self._watchers.discard(watcher)


class _Watcher:
    """A client that wants to hear each change of one service's status."""

    def __init__(self, health: HealthService, service: str, call: Call) -> None:
        self.call = call
        self._health = health
        self._service = service
        self._lock = threading.Lock()
        self._told: int | None = None
        self._reading = False  # a status was sent that the client has not read yet

    def tell(self) -> None:
        """Send the status if it is new to the client; later, if the client has not read the one before yet."""
        with self._lock:
            known = self._health.status(self._service) or HealthCheckResponse(
                status=HealthCheckResponse.SERVICE_UNKNOWN
            )
            if self._reading or known.status == self._told:
                return
            self._reading, self._told = True, known.status
        self.call.send(known.SerializeToString(), self._has_read)

    def end(self, status: Status) -> None:
        """End the watch. The call of a client that has not read the last status is cancelled: nothing waits for it."""
        if self._reading:
            self.call.cancel()
        else:
            self.call.end(status)

    def _has_read(self) -> None:
        with self._lock:
            self._reading = False
        self.tell()
