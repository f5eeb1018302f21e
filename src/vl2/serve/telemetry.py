"""The server's log (JSON lines on stderr) and its metrics for Prometheus.

The log never contains the content of a request: no text, no image, no URL of an image (which may contain a key), and no
header except the request id. The engine's counters are read at each scrape; times are recorded when answers end.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

LOGGER = logging.getLogger("vl2.serve")


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object, with the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{now}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up_logs(level: str) -> None:
    """Send the server's log and uvicorn's warnings to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("vl2.serve", level), ("uvicorn", "warning"), ("asyncio", "error")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(least.upper())


def log(
    event: str,
    fields: Mapping[str, object] | None = None,
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
) -> None:
    LOGGER.log(level, event, extra={"fields": fields or {}}, exc_info=error)


MetricValues = Mapping[str, float]
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)

# Metrics that a backend may report: name -> (type, help).
_BACKEND_METRICS = {
    "vl2_queue_length": ("gauge", "requests that wait"),
    "vl2_running": ("gauge", "requests in prefill or decoding"),
    "vl2_cache_tokens_reserved": ("gauge", "reserved positions of the KV cache"),
    "vl2_cache_tokens_limit": ("gauge", "positions of the KV cache that can be reserved"),
    "vl2_tokens_per_second": ("gauge", "tokens generated per second, over the last seconds"),
    "vl2_generated_tokens": ("counter", "tokens of answers"),
    "vl2_prompt_tokens": ("counter", "tokens of prompts, visual ones included"),
    "vl2_visual_tokens": ("counter", "visual tokens of prompts"),
    "vl2_tiles": ("counter", "tiles of the images of prompts"),
    "vl2_decode_steps": ("counter", "batched decoding steps"),
    "vl2_draft_tokens": ("counter", "tokens decoded before it was known whether they belong to an answer"),
    "vl2_accepted_tokens": ("counter", "guessed tokens that belong to an answer"),
    "vl2_busy_seconds": ("counter", "time that the engine worked"),
    "vl2_encoder_cache_hits": ("counter", "images found in the encoder cache"),
    "vl2_encoder_cache_misses": ("counter", "images that had to be encoded"),
    "vl2_encoder_cache_bytes": ("gauge", "memory of the encoder cache"),
    "vl2_prefix_cache_reused_tokens": ("counter", "prompt tokens found in the prefix cache"),
    "vl2_prefix_cache_read_tokens": ("counter", "prompt tokens that needed prefill"),
    "vl2_prefix_cache_bytes": ("gauge", "memory of the prefix cache"),
}


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vl2_requests", "HTTP requests by path and status", ("path", "status"), registry=self.registry
        )
        self.queue_s = self._times("vl2_queue_seconds", "from acceptance to the start of prefill")
        self.first_token_s = self._times("vl2_time_to_first_token_seconds", "from acceptance to the first token")
        self.token_s = self._times("vl2_time_per_output_token_seconds", "mean time between two tokens of an answer")
        self.whole_s = self._times("vl2_answer_seconds", "from acceptance to the last token")

    def watch(self, read: Callable[[], MetricValues]) -> None:
        """Report the values that `read` returns at every scrape."""
        self.registry.register(_BackendCollector(read))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _times(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, registry=self.registry, buckets=_SECONDS)


class _BackendCollector(Collector):
    def __init__(self, read: Callable[[], MetricValues]) -> None:
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for name, value in self._read().items():
            kind, documentation = _BACKEND_METRICS[name]
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            yield family(name, documentation, value=value)
