"""A small OTLP receiver over HTTP, for tests: it keeps what real exporters send, or hangs, or refuses."""

from __future__ import annotations

import gzip
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """A span as it arrived. `links` are the trace ids of the spans that it is linked to."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[str]
    links: list[str]


class Receiver:
    """What arrived so far.

    While `hangs` is set, requests get no answer, and `is_held` says that one waits; `status` is that of the others.
    """

    def __init__(self) -> None:
        self.status, self.hangs, self.is_held = 200, False, False
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._spans: list[bytes] = []
        self._metrics: list[bytes] = []
        self._end = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.hangs:
                    receiver.is_held = True
                    receiver._end.wait(60)
                    receiver.is_held = False
                    return
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if receiver.status == 200:
                    receiver.bodies.append(body)
                    receiver.headers.append(dict(self.headers))
                    (receiver._metrics if self.path.endswith("/v1/metrics") else receiver._spans).append(body)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def forget(self) -> None:
        """Forget what arrived."""
        for arrived in (self.bodies, self.headers, self._spans, self._metrics):
            arrived.clear()

    @property
    def spans(self) -> list[Span]:
        """All spans but Airflow's own, by their start."""
        found = []
        for body in self._spans:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    # `dag.test()` runs the scheduler in the same process, which on Airflow 3.3 then traces, too.
                    if not scope.scope.name.startswith("airflow."):
                        found += [_span(span) for span in scope.spans]
        return sorted(found, key=lambda span: span.start)

    @property
    def metrics(self) -> dict[str, dict[tuple[tuple[str, Any], ...], float]]:
        """The sum of each metric, by its labels; of a histogram the sum of what it counted."""
        found: dict[str, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
        for body in self._metrics:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in (*metric.sum.data_points, *metric.histogram.data_points):
                            value = (
                                getattr(point, "sum", 0)
                                or getattr(point, "as_double", 0)
                                or getattr(point, "as_int", 0)
                            )
                            found[metric.name][tuple(sorted(_attributes(point.attributes).items()))] += value
        return found

    def tree(self, *names: str) -> Any:
        """The spans as nested lists [name and these attributes, children], by their start; orphans stand at the top."""
        spans = self.spans
        known = {span.span_id for span in spans}

        def nodes(parent: str) -> list[Any]:
            mine = [span for span in spans if (span.parent_id if span.parent_id in known else "") == parent]
            return [
                (
                    " ".join([span.name, *(str(span.attributes[name]) for name in names if name in span.attributes)]),
                    nodes(span.span_id),
                )
                for span in mine
            ]

        return nodes("")


def _span(span: Any) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
        _attributes(span.attributes),
        [event.name for event in span.events],
        [link.trace_id.hex() for link in span.links],
    )


def _attributes(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
