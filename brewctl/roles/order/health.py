"""grpc.health.v1: whether this replica takes orders, for who asks and for who watches.

grpcio's own servicer tells its watchers under the lock that the serving thread needs as soon as one hangs up, and
waits for each to have read the last status: a client that reads nothing, or two that hang up at the wrong moment, stop
the whole server. Here nobody waits for a watcher: one that is slow gets the newest status once it has read the last.
"""

import threading

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from brewctl.roles.order.call import Call, with_message
from brewctl.roles.order.status import Status

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """What is known of each service by name, "" being the whole server. Safe from any thread."""

    def __init__(self, *, most: int, full: Status) -> None:
        """Take `most` watchers at a time; to a further one `full` is said."""
        self._most = most
        self._full = full
        self._lock = threading.Lock()  # held for a moment, never while a watcher is told
        self._statuses: dict[str, HealthCheckResponse] = {}
        self._watchers: set[_Watcher] = set()
        self._stopping = False
        self.methods = {
            "Check": with_message(health_pb2.HealthCheckRequest.FromString, self._check),
            "List": with_message(health_pb2.HealthListRequest.FromString, self._list),
            "Watch": with_message(health_pb2.HealthCheckRequest.FromString, self._watch),
        }

    def set(self, service: str, *, serving: bool) -> None:
        """Change what is known of a service, and tell its watchers. Nothing after `stop` counts."""
        with self._lock:
            if self._stopping:
                return
            self._statuses[service] = HealthCheckResponse(
                status=HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
            )
        self._tell()

    def stop(self) -> None:
        """Say of every service, for good, that it does not serve."""
        with self._lock:
            self._stopping = True
            self._statuses = {
                name: HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING) for name in self._statuses
            }
        self._tell()

    def end_watches(self, status: Status) -> None:
        """End the call of each watcher: a server that stops waits for open calls."""
        with self._lock:
            watchers = list(self._watchers)
        for each in watchers:
            each.end(status)

    def status(self, service: str) -> HealthCheckResponse | None:
        """Return what is known of a service."""
        return self._statuses.get(service)

    @property
    def watchers(self) -> int:
        """How many watch."""
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

    def __init__(self, health: Health, service: str, call: Call) -> None:
        self.call = call
        self._health = health
        self._service = service
        self._lock = threading.Lock()
        self._told: int | None = None
        self._reading = False  # has not read the last status yet

    def tell(self) -> None:
        """Send the status if the client has not heard it, or let that wait until it has read the last one."""
        with self._lock:
            known = self._health.status(self._service) or HealthCheckResponse(
                status=HealthCheckResponse.SERVICE_UNKNOWN
            )
            if self._reading or known.status == self._told:
                return
            self._reading, self._told = True, known.status
        self.call.send(known.SerializeToString(), self._has_read)

    def end(self, status: Status) -> None:
        """End the watch. Its client is not waited for: one that has not read the last status is hung up on."""
        if self._reading:
            self.call.cancel()
        else:
            self.call.end(status)

    def _has_read(self) -> None:
        with self._lock:
            self._reading = False
        self.tell()
