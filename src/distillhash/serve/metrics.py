"""Counts and times for Prometheus, one registry a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What ``GET /metrics`` shows."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "distillhash_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "distillhash_http_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            "distillhash_batch_size", "Jobs computed together.", ["queue"], buckets=_SIZES, registry=self._registry
        )
        self._waiting = Gauge("distillhash_waiting", "Jobs not yet answered.", ["queue"], registry=self._registry)
        self._ready = Gauge("distillhash_ready", "1 when warm-up is over.", registry=self._registry)
        self._counters: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request."""
        key = method, route, status
        if key not in self._counters:
            self._counters[key] = self._requests.labels(method, route, str(status)), self._seconds.labels(route)
        counter, histogram = self._counters[key]
        counter.inc()
        histogram.observe(seconds)

    def batch(self, queue: str) -> Callable[[int], None]:
        """What notes the sizes of one queue's batches."""
        observe: Callable[[int], None] = self._batches.labels(queue).observe
        return observe

    def watch(self, queue: str, waiting: Callable[[], int]) -> None:
        """Show the length of a queue."""
        self._waiting.labels(queue).set_function(waiting)

    def ready(self, is_ready: Callable[[], bool]) -> None:
        """Show whether the server is ready."""
        self._ready.set_function(lambda: float(is_ready()))

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
