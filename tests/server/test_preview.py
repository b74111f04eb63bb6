"""Previews: small, never in the way, and like the picture that is coming."""

import io
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from engines.component import PipelineSpec, Projection
from engines.runner import open_runner
from server.image import to_pixels
from server.job import Job
from server.preview import MAX_BYTES, MAX_SIDE, Previewer, PreviewProjection
from server.reply import Reply
from server.table import Level, Linear, P, Q, Trace, compile_table
from tests.fakes import CHECKPOINT, idle_table, make_job
from tests.oracles import clean_estimate

Floats = npt.NDArray[np.float32]
# About the size of Stable Diffusion's own.
MATRIX = ((0.60, 0.41, 0.37), (0.37, 0.50, 0.57), (-0.26, 0.11, -0.14), (-0.47, -0.43, -1.03))
SECONDS = 20.0


@pytest.fixture(scope="module")
def spec(fake_export: Path) -> PipelineSpec:
    return replace(PipelineSpec.read(fake_export), preview=Projection(MATRIX, (-0.05, 0.0, 0.1), 0.9))


@pytest.fixture(scope="module")
def projection(spec: PipelineSpec) -> PreviewProjection:
    return PreviewProjection(spec)


def noise(height: int, width: int, size: float = 1.0, seed: int = 0) -> Floats:
    return (size * np.random.default_rng(seed).normal(size=(4, height, width))).astype(np.float32)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


def test_colours_are_the_latents_through_the_matrix(projection: PreviewProjection) -> None:
    latent = noise(5, 7)
    pixels = projection.rgb(latent)
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    colour = latent[:, 4, 2].astype(np.float64) @ np.array(MATRIX) + [-0.05, 0.0, 0.1]
    expected = np.clip((colour + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(pixels[4, 2], expected, atol=0.51)


def test_a_projection_takes_as_many_channels_as_its_checkpoint_has(spec: PipelineSpec) -> None:
    many = Projection(MATRIX * 4, (0.0, 0.0, 0.0), 0.9)
    latent = np.concatenate([noise(4, 4, seed=seed) for seed in range(4)])
    wide = PreviewProjection(replace(spec, latent_channels=16, preview=many)).rgb(latent)
    summed = PreviewProjection(replace(spec, preview=replace(many, matrix=MATRIX))).rgb(
        latent.reshape(4, 4, 4, 4).sum(0)
    )
    assert np.abs(wide.astype(int) - summed).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (64, 64, (256, 256)),
        (96, 64, (171, 256)),
        (64, 128, (256, 128)),
        (16, 16, (128, 128)),
        (8, 24, (192, 64)),
        (1, 512, (256, 1)),
        (300, 200, (171, 256)),
        (1, 1, (8, 8)),
    ],
)
def test_a_preview_is_as_large_as_the_picture_but_not_above_256(
    projection: PreviewProjection, height: int, width: int, size: tuple[int, int]
) -> None:
    assert opened(projection.encode(noise(height, width))).size == size


def test_a_preview_shows_its_latent(projection: PreviewProjection) -> None:
    latent = np.repeat(np.repeat(noise(4, 4, 0.5), 8, axis=1), 8, axis=2)
    small = opened(projection.encode(latent)).resize((32, 32), Image.Resampling.BOX)
    difference = np.asarray(small).astype(int) - projection.rgb(latent)
    assert np.sqrt(np.square(difference).mean()) < 12


VALUES = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, float("nan"), float("inf"), float("-inf")]),
)


@settings(max_examples=60, deadline=None)
@given(
    latent=arrays.arrays(
        np.float32,
        st.tuples(st.just(4), st.integers(1, 40), st.integers(1, 40)),
        elements=VALUES,
        fill=st.sampled_from([0.0, float("nan"), 1e9]),
    )
)
def test_every_latent_has_a_small_preview(projection: PreviewProjection, latent: Floats) -> None:
    before = latent.copy()
    data = projection.encode(latent)
    assert len(data) <= MAX_BYTES
    height, width = latent.shape[1:]
    longest = max(opened(data).size)
    assert longest == min(MAX_SIDE, 8 * max(height, width))
    assert np.array_equal(latent, before, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.3, 1.0, 3.0, 100.0, 1e30]),
    shape=st.sampled_from([(64, 64), (128, 96), (256, 256), (320, 200), (255, 256)]),
)
def test_noise_fits_too(projection: PreviewProjection, seed: int, size: float, shape: tuple[int, int]) -> None:
    data = projection.encode(noise(*shape, size, seed))
    assert len(data) <= MAX_BYTES
    assert max(opened(data).size) == MAX_SIDE


def test_what_no_quality_makes_small_enough_is_made_smaller(
    projection: PreviewProjection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.preview.MAX_BYTES", 3000)
    data = projection.encode(noise(256, 256, 100.0))
    assert len(data) <= 3000
    assert max(opened(data).size) in (64, 128)


def test_what_is_no_number_is_seen_as_nothing_and_spares_the_rest(projection: PreviewProjection) -> None:
    latent = noise(4, 4)
    broken = latent.copy()
    broken[:, 1, 2] = np.nan
    zero = latent.copy()
    zero[:, 1, 2] = 0
    assert np.array_equal(projection.rgb(broken), projection.rgb(zero))
    broken[0, 0, 0] = np.inf
    assert projection.rgb(broken)[0, 0].tolist() == [255, 255, 255]


def test_a_preview_takes_milliseconds(projection: PreviewProjection) -> None:
    """A bound that holds on a busy machine; in peace it is some 2 ms."""
    times = []
    for seed in range(10):
        latent = noise(64, 64, seed=seed)
        started = time.perf_counter()
        projection.encode(latent)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.02


@pytest.fixture(scope="module")
def decoded(embedded_export: Path) -> list[tuple[Floats, npt.NDArray[np.uint8]]]:
    """Latents of drawn scenes in the UNet's scale, and their decoded pictures averaged over the pixels of a latent."""
    import random

    from export.embedded.world import draw, sample_scene

    spec = PipelineSpec.read(embedded_export)
    encoder, decoder = (
        open_runner(spec.component(name), embedded_export, "cpu") for name in ("vae_encoder", "vae_decoder")
    )
    rng = random.Random(3)
    drawn = np.stack([draw(sample_scene(rng)) for _ in range(24)]).transpose(0, 3, 1, 2)
    means = encoder.infer({"image": drawn.astype(np.float32) / 127.5 - 1})["moments"][:, : spec.latent_channels]
    pixels = to_pixels(decoder.infer({"latent": means})["image"])
    small = pixels.reshape(len(pixels), 16, 8, 16, 8, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    return list(zip(means * np.float32(spec.scaling_factor), small, strict=True))


def psnr(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return 10 * math.log10(255**2 / float(np.square(one.astype(float) - other).mean()))


def test_a_preview_of_the_embedded_checkpoint_is_like_the_decoded_picture(
    embedded_export: Path, decoded: list[tuple[Floats, npt.NDArray[np.uint8]]]
) -> None:
    """Seen: 15.3 dB on average, 11.8 at least; 9.8 with the mean colour of all; 21 of 24 are nearest to their own."""
    projection = PreviewProjection(PipelineSpec.read(embedded_export))
    pictures = np.stack([picture for _, picture in decoded])
    previews = [opened(projection.encode(latent)) for latent, _ in decoded]
    assert {preview.size for preview in previews} == {(128, 128)}
    shown = [np.asarray(preview.resize((16, 16), Image.Resampling.BOX)) for preview in previews]
    found = np.array([[psnr(preview, picture) for picture in pictures] for preview in shown])
    unknowing = [psnr(pictures.mean(axis=(0, 1, 2)), picture) for picture in pictures]
    own = found.diagonal()
    assert own.mean() > 14
    assert own.min() > 10.5
    assert own.mean() > np.mean(unknowing) + 4
    assert np.count_nonzero(found.argmax(axis=1) == np.arange(len(found))) >= 18


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.8, 0.6), (0.068, math.sqrt(1 - 0.068**2)), (1.0, 0.03), (1.0, 14.6)], ids=str
)
def test_a_true_output_gives_the_clean_latent_back(prediction_type: str, alpha: float, sigma: float) -> None:
    clean, drawn = noise(3, 3, seed=1).astype(np.float64), noise(3, 3, seed=2).astype(np.float64)
    norm = math.hypot(alpha, sigma)
    outputs = {"epsilon": drawn, "v_prediction": (alpha * drawn - sigma * clean) / norm, "sample": clean}
    x, m = alpha * clean + sigma * drawn, outputs[prediction_type]
    np.testing.assert_allclose(clean_estimate(x, m, alpha, sigma, prediction_type), clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("level", [Level.at(0.3), Level.preserving(9.0), Level(1.0, 14.6)], ids=str)
def test_the_columns_of_a_table_give_the_same_estimate(prediction_type: str, level: Level) -> None:
    def once(trace: Trace, x: Linear) -> Linear:
        return trace.raw(x, level, 500.0)[1]

    line = compile_table(once, prediction_type, 1.0).lines[0]
    x, m = noise(3, 3, seed=1), noise(3, 3, seed=2)
    expected = clean_estimate(x, m, level.alpha, level.sigma, prediction_type)
    np.testing.assert_allclose(line[P] * x + line[Q] * m, expected, rtol=1e-4, atol=1e-4)


class Deliveries:
    """Keeps what is delivered; can hold the previewer, and break."""

    def __init__(self) -> None:
        self.made: list[tuple[Job, int]] = []
        self.pictures: list[bytes] = []
        self.begun = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.failures = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, job: Job, step: int, data: bytes) -> None:
        self.begun.release()
        self.gate.wait()
        self.made.append((job, step))
        self.pictures.append(data)
        try:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("the client has gone")
        finally:
            self.done.release()

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.done.acquire(timeout=SECONDS)

    def hold(self, previewer: Previewer) -> Job:
        """Let the previewer come to a delivery, and keep it there."""
        self.gate.clear()
        job = image_job()
        previewer.submit(job, noise(8, 8), 0)
        assert self.begun.acquire(timeout=SECONDS)
        return job


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries()


@pytest.fixture
def previewer(projection: PreviewProjection, deliveries: Deliveries) -> Iterator[Previewer]:
    made = Previewer({CHECKPOINT: projection}, deliveries, limit=4)
    made.start()
    yield made
    deliveries.gate.set()
    made.close()


class OpenReply:
    """What a previewer looks at of a reply."""

    answered = False


def image_job(of: Job | None = None, index: int = 0) -> Job:
    """Image `index` of its own request, or of the same as another."""
    job = make_job(idle_table(20))
    job.index = index
    job.reply = cast(Reply, OpenReply()) if of is None else of.reply
    return job


def answer(job: Job) -> None:
    cast(OpenReply, job.reply).answered = True


def test_a_preview_is_delivered_with_its_job_and_step(
    previewer: Previewer, deliveries: Deliveries, projection: PreviewProjection
) -> None:
    job, latent = image_job(), noise(8, 8)
    previewer.submit(job, latent, 7)
    deliveries.wait()
    assert deliveries.made == [(job, 7)]
    assert deliveries.pictures == [projection.encode(latent)]


def test_only_the_newest_of_an_image_is_shown(previewer: Previewer, deliveries: Deliveries) -> None:
    held = deliveries.hold(previewer)
    first = image_job()
    second = image_job(of=first, index=1)
    for step in range(1, 6):
        previewer.submit(first, noise(8, 8), step)
        previewer.submit(second, noise(8, 8), 10 * step)
    deliveries.gate.set()
    deliveries.wait(3)
    assert deliveries.made == [(held, 0), (first, 5), (second, 50)]


def test_submitting_never_waits(previewer: Previewer, deliveries: Deliveries) -> None:
    deliveries.hold(previewer)
    jobs = [image_job() for _ in range(20)]
    started = time.perf_counter()
    for step in range(200):
        previewer.submit(jobs[step % 20], noise(2, 2), step)
    assert time.perf_counter() - started < 1


def test_the_longest_waiting_are_dropped_beyond_the_limit(previewer: Previewer, deliveries: Deliveries) -> None:
    held = deliveries.hold(previewer)
    jobs = [image_job() for _ in range(7)]
    for step, job in enumerate(jobs):
        previewer.submit(job, noise(8, 8), step)
    deliveries.gate.set()
    deliveries.wait(5)
    assert deliveries.made == [(held, 0), *((jobs[step], step) for step in range(3, 7))]


def test_nothing_is_shown_of_a_request_that_was_answered(previewer: Previewer, deliveries: Deliveries) -> None:
    held = deliveries.hold(previewer)
    before, later, open_ = image_job(), image_job(), image_job()
    answer(before)
    for job in (before, later, open_):
        previewer.submit(job, noise(8, 8), 1)
    answer(later)
    deliveries.gate.set()
    deliveries.wait(2)
    assert deliveries.made == [(held, 0), (open_, 1)]


def test_an_answer_while_it_is_encoded_is_in_time(spec: PipelineSpec, deliveries: Deliveries) -> None:
    class Answering(PreviewProjection):
        def encode(self, latent: Floats) -> bytes:
            answer(first)
            return super().encode(latent)

    first, second = image_job(), image_job()
    previewer = Previewer({CHECKPOINT: Answering(spec)}, deliveries)
    previewer.start()
    previewer.submit(first, noise(8, 8), 1)
    previewer.submit(second, noise(8, 8), 2)
    deliveries.wait()
    previewer.close()
    assert deliveries.made == [(second, 2)]


def test_it_outlives_what_fails(previewer: Previewer, deliveries: Deliveries, caplog: pytest.LogCaptureFixture) -> None:
    deliveries.failures = 1
    jobs = [image_job() for _ in range(2)]
    with caplog.at_level(logging.ERROR, "server.preview"):
        previewer.submit(jobs[0], noise(8, 8), 1)
        deliveries.wait()
        previewer.submit(image_job(index=3), np.zeros((7, 7), np.float32), 2)
        previewer.submit(jobs[1], noise(8, 8), 3)
        deliveries.wait()
    assert deliveries.made == [(jobs[0], 1), (jobs[1], 3)]
    assert [record.getMessage() for record in caplog.records] == [
        "a preview of image 0 failed",
        "a preview of image 3 failed",
    ]


def test_closing_drops_what_waits_and_takes_no_more(previewer: Previewer, deliveries: Deliveries) -> None:
    held = deliveries.hold(previewer)
    previewer.submit(image_job(), noise(8, 8), 1)
    closing = threading.Thread(target=previewer.close)
    closing.start()
    time.sleep(0.05)
    previewer.submit(image_job(), noise(8, 8), 2)
    deliveries.gate.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert deliveries.made == [(held, 0)]


def test_a_client_that_takes_nothing_does_not_hold_up_the_end(
    previewer: Previewer, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.preview.CLOSE_SECONDS", 0.05)
    deliveries.hold(previewer)
    started = time.perf_counter()
    previewer.close()
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("begin", [lambda previewer: None, Previewer.start], ids=["never started", "idle"])
def test_closing_is_quick(projection: PreviewProjection, begin: Callable[[Previewer], None]) -> None:
    previewer = Previewer({CHECKPOINT: projection}, Deliveries())
    begin(previewer)
    started = time.perf_counter()
    previewer.close()
    previewer.close()
    assert time.perf_counter() - started < 1
