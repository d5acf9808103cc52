"""What a server counts, as a page for Prometheus."""

from collections.abc import Callable

import prometheus_client as prometheus

from sigma_jax.policies.serving.batching import BatchReport

# seconds: a tiny base answers in one millisecond, a first compilation takes minutes
TIMES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 20, 60, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = prometheus.CONTENT_TYPE_PLAIN_0_0_4
ANSWERED, REFUSED, FAILED = 'answered', 'refused', 'failed'  # a client's fault, the server's


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self._registry = registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            'sigma_requests', 'requests by what became of them', ['outcome'], registry=registry
        )
        self._seconds = prometheus.Histogram(
            'sigma_request_seconds', 'from request to answer', buckets=TIMES, registry=registry
        )
        self._infer = prometheus.Histogram(
            'sigma_infer_seconds', 'of a call of the policy', buckets=TIMES, registry=registry
        )
        self._waited = prometheus.Histogram(
            'sigma_queue_seconds', 'that a request waited', buckets=TIMES, registry=registry
        )
        self._sizes = prometheus.Histogram(
            'sigma_batch_size', 'requests in a batch', buckets=SIZES, registry=registry
        )
        for outcome in (ANSWERED, REFUSED, FAILED):
            self._requests.labels(outcome)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Shows a number that is read when the page is.

        Args:
          name: after `sigma_`.
          text: what it is.
          value: reads it.
        """
        prometheus.Gauge(f'sigma_{name}', text, registry=self._registry).set_function(value)

    def request(self, outcome: str, seconds: float) -> None:
        """Counts a request.

        Args:
          outcome: ANSWERED, REFUSED or FAILED.
          seconds: from its coming to its answer.
        """
        self._requests.labels(outcome).inc()
        self._seconds.observe(seconds)

    def batch(self, report: BatchReport) -> None:
        """Counts a call of the policy.

        Args:
          report: of the batcher.
        """
        self._infer.observe(report.infer_s)
        self._waited.observe(report.waited_s)
        self._sizes.observe(report.size)

    def page(self) -> bytes:
        """All of it, in Prometheus' text form."""
        return prometheus.generate_latest(self._registry)
