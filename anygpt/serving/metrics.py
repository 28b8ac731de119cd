"""What the server counts, for Prometheus."""

from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "anygpt_requests",
            "Requests by endpoint and status; 499: the client left",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "anygpt_request_seconds",
            "From a request's first byte to its answer's last",
            ["endpoint"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "anygpt_first_ids_seconds",
            "From when a streamed answer is queued to its first ids",
            [],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter("anygpt_tokens", "Ids read and drawn", ["kind"], registry=self._registry)
        self._recent: deque[float] = deque(maxlen=32)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge that is asked for its value."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def answered(self, seconds: float) -> None:
        """Remember how long a request with an answer of the model took."""
        self._recent.append(seconds)

    def first_ids(self, seconds: float) -> None:
        self._first.observe(seconds)

    def tokens(self, kind: str, count: int) -> None:
        """Count ids of a prompt (`prompt`) or of answers (`generated`)."""
        self._tokens.labels(kind).inc(count)

    @property
    def typical_s(self) -> float:
        """What a request took lately, in the middle; 1 before there was any."""
        recent = sorted(self._recent)
        return recent[len(recent) // 2] if recent else 1.0

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
