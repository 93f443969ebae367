"""What Prometheus may ask."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from porter.serve.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("porter_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry)
        self.seconds = Histogram(
            "porter_request_seconds",
            "Time from a request to its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.cancelled = Counter("porter_cancelled", "Requests whose client went away.", registry=self.registry)
        self.steps = Counter("porter_steps", "Denoising steps taken, one a request.", registry=self.registry)
        self.batches = Histogram(
            "porter_step_batch_size",
            "Requests that took a denoising step together.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )

    def watch(self, engine: Engine) -> None:
        """Report how many requests run and wait."""
        running = Gauge("porter_requests_running", "Requests that run.", registry=self.registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("porter_requests_waiting", "Requests that wait.", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)

    def tick(self, sizes: Sequence[int]) -> None:
        """Count the batches of one tick of the engine."""
        for size in sizes:
            self.steps.inc(size)
            self.batches.observe(size)

    def text(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry)
