"""What Prometheus sees of a consumer; docs/streaming.md says what to make of it."""

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from datasets.errors import SentileError


class Fate(StrEnum):
    """What became of a notice."""

    DONE = "done"
    KEPT = "kept"  # its results lay there already
    RETRIED = "retried"
    BURIED = "buried"  # among the dead letters
    RETURNED = "returned"  # since the consumer ended


REGISTRY = CollectorRegistry()
"""Of the consumer alone: the service's own metrics, which its modules bring, would stand at 0."""
NOTICES = Counter("sentile_stream_notices_total", "Notices taken, by what became of them", ["fate"], registry=REGISTRY)
WINDOWS = Counter("sentile_stream_windows_total", "Windows classified", registry=REGISTRY)
SCENE_SECONDS = Histogram(
    "sentile_stream_scene_seconds",
    "Seconds from when a notice was taken until its result was out, for scenes that were done",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
    registry=REGISTRY,
)
BEHIND_SECONDS = Histogram(
    "sentile_stream_behind_seconds",
    "Seconds from when a notice was sent until its result was out, for scenes that were done",
    buckets=(1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600),
    registry=REGISTRY,
)
IN_WORK = Gauge("sentile_stream_in_work", "Notices in work", registry=REGISTRY)
PAUSED = Gauge("sentile_stream_paused", "1 while no notice is taken for want of room on the disk", registry=REGISTRY)
QUEUE_FAILURES = Counter("sentile_stream_queue_failures_total", "Times that a queue did not answer", registry=REGISTRY)
ProcessCollector(registry=REGISTRY)
for _fate in Fate:  # Prometheus sees no increase in a series that begins with 1
    NOTICES.labels(_fate.value)


def serve(address: str) -> None:
    """Answer Prometheus at `host:port`, by a thread, as long as this process lives.

    Raises:
        SentileError: it is no address of this machine, or taken.
    """
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1", REGISTRY)
    except (OSError, ValueError, OverflowError) as error:
        raise SentileError(f"--metrics {address}: {error}; say HOST:PORT of this machine, such as :9105") from error
