"""A receiver of OTLP in a process of its own: says where it listens, and writes each span it gets as a line of JSON.

    python tests/otlp_receiver.py FILE take|hang|refuse|grpc|grpc-hang

`take` answers as a collector does, `hang` reads and never answers, `refuse` answers 500 after a while.
"""

import json
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

_REFUSES_AFTER_S = 1.0


def flat(request: Any) -> Iterable[dict[str, Any]]:
    for resource in request.resource_spans:
        of_resource = attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "service": of_resource.get("service.name"),
                    "instance": of_resource.get("service.instance.id"),
                    "resource": of_resource,
                    "name": span.name,
                    "kind": span.kind,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
                    "attributes": attributes(span.attributes),
                    "events": [event.name for event in span.events],
                    "status": span.status.code,
                }


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Written:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def add(self, request: Any) -> None:
        with self._lock, self._path.open("a") as file:
            file.writelines(f"{json.dumps(span)}\n" for span in flat(request))


def serve_http(written: Written, how: str) -> None:
    for_ever = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if how == "hang":
                for_ever.wait()
            if how == "refuse":
                for_ever.wait(_REFUSES_AFTER_S)
            else:
                written.add(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(500 if how == "refuse" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name for it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def serve_grpc(written: Written, how: str) -> None:
    for_ever = threading.Event()

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: object) -> Any:  # noqa: N802, ARG002 - gRPC's own
            if how == "grpc-hang":
                for_ever.wait()
            written.add(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"http://127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    file, way = Written(Path(sys.argv[1])), sys.argv[2]
    if way.startswith("grpc"):
        serve_grpc(file, way)
    else:
        serve_http(file, way)
