"""What a server counts, in the format of Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from manta.server.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """Counters of one server."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("manta_requests", "Requests answered.", ["path", "status"], **own)
        self.seconds = Histogram("manta_request_seconds", "Time to the last byte.", ["path"], buckets=SECONDS, **own)
        self.texts = Counter("manta_texts", "Texts written, failed or left.", ["model", "outcome"], **own)
        self.calls = Counter("manta_network_calls", "Sequential network calls of texts.", ["model"], **own)
        self.tokens = Counter("manta_tokens", "Tokens of texts.", ["model"], **own)
        self.batches = Histogram("manta_batch_texts", "Texts written at once.", ["model"], buckets=SIZES, **own)
        self.waiting = Gauge("manta_waiting_texts", "Texts that wait.", ["model"], **own)
        self.running = Gauge("manta_running_texts", "Texts being written.", ["model"], **own)

    def watch(self, name: str, engine: Engine) -> None:
        """Tell how full an engine is whenever somebody asks."""
        self.waiting.labels(name).set_function(lambda: engine.waiting)
        self.running.labels(name).set_function(lambda: engine.running)

    def outcome(self, name: str, outcome: str) -> None:
        """Count what became of a text."""
        self.texts.labels(name, outcome).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
