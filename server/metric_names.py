"""What the server counts and measures: the table of its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

PREFIX = "aquatint_"
OUTCOMES = ("ok", "invalid", "cancelled", "timeout", "overload", "error")

# Upper bounds. Seconds of one UNet call; of a part that runs once per image; of a request or of waiting for one; rows.
STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PART_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REQUEST_SECONDS = (
    *(0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0),
)
QUEUE_SECONDS = (0.001, 0.005, 0.01, 0.025, *REQUEST_SECONDS)
ROWS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: without the prefix.
        labels: names, all of which every use must give.
        buckets: upper bounds of a histogram, ascending; the last one, infinity, is implied.
        choices: all values of its only label; empty means any.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus sees it."""
        return PREFIX + self.name

    @property
    def known_labels(self) -> tuple[tuple[str, ...], ...]:
        """Label values of the series that exist from the start, since Prometheus misses the first step of a new one.

        A gauge has none: zero would be a statement.
        """
        if self.kind == "gauge" or (self.labels and not self.choices):
            return ()
        return tuple((choice,) for choice in self.choices) or ((),)


def _counter(name: str, text: str, *labels: str, choices: tuple[str, ...] = ()) -> MetricSpec:
    return MetricSpec(name, "counter", text, labels, choices=choices)


def _gauge(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, "gauge", text, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> MetricSpec:
    return MetricSpec(name, "histogram", text, labels, buckets)


# The label `model` is a checkpoint; `bucket` is height x width in pixels; `rows` are those of the call, with padding.
METRICS = (
    _counter("requests_total", "Requests answered, by how they ended", "outcome", choices=OUTCOMES),
    _counter("images_total", "Images delivered, by size in pixels", "model", "height", "width"),
    _histogram("queue_seconds", "From a job's arrival to its first UNet call", QUEUE_SECONDS),
    _histogram("denoise_seconds", "From a job's first UNet call to its finished latent", REQUEST_SECONDS),
    _histogram("decode_seconds", "One VAE decoder call", PART_SECONDS),
    _histogram("encode_seconds", "Writing an image in its format", PART_SECONDS),
    _histogram("request_seconds", "From a request's arrival to its answer with all images", REQUEST_SECONDS),
    _histogram("first_preview_seconds", "From a request's arrival to its first preview", QUEUE_SECONDS),
    _histogram("step_seconds", "One UNet call", STEP_SECONDS, "model", "bucket", "rows"),
    _histogram("rows_per_call", "Rows of one UNet call without padding", ROWS, "model", "bucket"),
    _counter("rows_total", "Rows of UNet calls without padding", "model", "bucket"),
    _counter("padded_rows_total", "Rows of UNet calls that were only padding", "model", "bucket"),
    _gauge("running", "Jobs that have begun and are not finished", "model", "bucket"),
    _gauge("waiting", "Jobs that wait for their first UNet call", "model", "bucket"),
    _gauge("row_cap", "Rows that UNet calls are filled up to", "model", "bucket"),
    _counter("cancelled_steps_saved_total", "UNet steps that cancelled jobs would still have taken"),
    _counter("retried_calls_total", "UNet calls made again, for jobs of one that had failed"),
    _counter("failed_calls_total", "UNet calls that failed, made again or not"),
    _gauge("weights_bytes", "Weights of a component, once for all checkpoints that share it", "model", "component"),
    _gauge("loop_heartbeat_timestamp_seconds", "Unix time of the denoising loop's last turn"),
    _gauge("start_time_seconds", "Unix time when the model was loaded"),
    _counter("embedding_cache_hits_total", "Prompts whose embedding was kept from before"),
    _counter("embedding_cache_misses_total", "Prompts that had to be encoded"),
    _counter("response_cache_hits_total", "Requests answered with images kept from before"),
    _counter("response_cache_misses_total", "Requests that could have been answered from the cache but were not"),
    _gauge("predicted_wait_seconds", "What a request with default settings that came now would wait"),
    _counter("dropped_observations_total", "Measurements that came faster than they could be exported"),
)
METRIC_BY_NAME = {metric.name: metric for metric in METRICS}
