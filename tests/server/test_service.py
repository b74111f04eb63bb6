"""The whole service on fake networks: company never shows in a picture, and nobody is left unanswered."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engines.component import Arrays, PipelineSpec
from engines.errors import FeedError, ProviderError
from engines.runner import Runner
from server.checkpoints import Checkpoints, open_checkpoints
from server.config import ServerConfig
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError, TimedOut
from server.fields import MAX_PROMPT_BYTES
from server.infotext import read_fields
from server.pipeline import Pipeline
from server.preparation import MAX_TEXTS
from server.sampler_names import SAMPLERS
from server.service import Service
from tests.fakes import BlockableRunner, ListSink

# Raw, because a PNG also says how it was drawn.
SUBJECT: dict[str, Any] = {
    "prompt": "a b c",
    "negative_prompt": "d",
    "seed": 5,
    "sampler": "euler_ancestral",
    "output_format": "raw",
}
NEIGHBOURS: list[dict[str, Any]] = [
    {"prompt": "e f", "seed": 6, "sampler": "euler", "num_inference_steps": 31},
    {"prompt": "g", "seed": 7, "sampler": "ddim", "guidance_scale": 1.0, "num_inference_steps": 7},
    {"prompt": "h i j", "seed": 8, "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 0.0},
    {"prompt": "k", "seed": 9, "sampler": "dpmpp_2m", "num_inference_steps": 3},
    {"prompt": "l", "seed": 10, "sampler": "euler_ancestral", "num_inference_steps": 44},
    {"prompt": "a b c", "seed": 5, "sampler": "ddim", "schedule": "karras", "guidance_scale": 12.0},
    {"prompt": "m", "seed": 11, "sampler": "euler", "schedule": "karras", "num_inference_steps": 1},
]


class BitsDecoder:
    """In place of a VAE decoder: its picture is the latent, byte by byte, so that equal pictures are equal latents."""

    def __init__(self, runner: BlockableRunner) -> None:
        self.component = runner.component
        self.provider = runner.provider

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        latents = feeds["latent"]
        rows, _, height, width = latents.shape
        values = np.zeros((rows, 3 * 64 * height * width), np.float32)
        told = np.ascontiguousarray(latents, np.float32).reshape(rows, -1).view(np.uint8)
        values[:, : told.shape[1]] = told
        return {"image": values.reshape(rows, 3, 8 * height, 8 * width) / np.float32(127.5) - 1}


@pytest.fixture
def exact(fake_export: Path, runners: dict[str, BlockableRunner]) -> Iterator[Service]:
    """A service whose pictures are the bits of its latents."""
    spec = PipelineSpec.read(fake_export)
    config = ServerConfig(model=fake_export, provider="fake", max_rows=16, step_seconds=((2, 0.002), (16, 0.002)))
    telling: dict[str, Runner] = {**runners, "vae_decoder": BitsDecoder(runners["vae_decoder"])}
    made = Service(Checkpoints([Pipeline(spec, fake_export, telling)]), config)
    made.start()
    yield made
    runners["unet"].release()
    made.close()


def submit(service: Service, **fields: Any) -> ListSink:
    sink = ListSink()
    service.submit({k: list(v) if isinstance(v, list | tuple) else [v] for k, v in fields.items()}, sink)
    return sink


def images(sink: ListSink) -> list[bytes]:
    assert sink.wait(), "no answer"
    assert sink.error is None, sink.error
    assert sink.images is not None
    return sink.images


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


COMPOSED = {**SUBJECT, "prompt": "a b AND c :0.5", "prompt_syntax": "a1111"}
SCHEDULED = {**SUBJECT, "prompt": "[a:b:0.4] [c|d]", "negative_prompt": "[e:f:3]", "prompt_syntax": "a1111"}
INTERVAL = {**SUBJECT, "guidance_start": 0.2, "guidance_end": 0.6, "guidance_rescale": 0.7}


@pytest.mark.parametrize(
    "subject", [SUBJECT, COMPOSED, SCHEDULED, INTERVAL], ids=["plain", "composed", "scheduled", "interval"]
)
def test_image_is_the_same_alone_in_company_and_when_joining_mid_flight(
    exact: Service, runners: dict[str, BlockableRunner], subject: dict[str, Any]
) -> None:
    unet = runners["unet"]
    alone = images(submit(exact, **subject))

    unet.hold()
    first, *others = [submit(exact, **fields) for fields in (subject, *NEIGHBOURS)]
    unet.release()
    together = images(first)
    for other in others:
        images(other)
    assert max(unet.rows) >= 8

    earlier = [submit(exact, **fields) for fields in NEIGHBOURS]
    calls = len(unet.rows)
    wait_for(lambda: len(unet.rows) > calls + 2)
    late = images(submit(exact, **subject))
    for other in earlier:
        images(other)
    assert alone == together == late


def test_all_samplers_at_once_draw_what_each_draws_alone(exact: Service, runners: dict[str, BlockableRunner]) -> None:
    requests = [
        {"prompt": f"a b {'cdefg'[i % 5]}", "seed": i, "sampler": sampler.name, "num_inference_steps": 4 + i % 5}
        | {"guidance_scale": 1.0 if i % 3 == 0 else 6.5, "output_format": "raw"}
        for i, sampler in enumerate(SAMPLERS)
    ]
    alone = [images(submit(exact, **request))[0] for request in requests]
    assert len(set(alone)) == len(SAMPLERS)
    runners["unet"].rows.clear()
    runners["unet"].hold()
    sinks = [submit(exact, **request) for request in requests]
    runners["unet"].release()
    for sampler, sink, expected in zip(SAMPLERS, sinks, alone, strict=True):
        assert images(sink)[0] == expected, sampler.name
    assert max(runners["unet"].rows) > 12


def test_num_images_equal_single_requests_with_following_seeds(service: Service) -> None:
    together = images(submit(service, **{**SUBJECT, "num_images": 3}))
    single = [images(submit(service, **{**SUBJECT, "seed": 5 + i}))[0] for i in range(3)]
    assert together == single
    assert len(set(together)) == 3


# Not guidance_rescale: the fake network's positive and negative outputs have the same deviation.
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nothing again": {},
    "seed": {"seed": 6},
    "prompt": {"prompt": "x"},
    "negative_prompt": {"negative_prompt": "x"},
    "guidance_scale": {"guidance_scale": 3.0},
    "num_inference_steps": {"num_inference_steps": 7},
    "sampler": {"sampler": "euler"},
    "schedule": {"schedule": "karras"},
    "rho": {"schedule": "karras", "rho": 3.0},
    "timestep_spacing": {"timestep_spacing": "trailing"},
    "final_sigma": {"final_sigma": "sigma_min"},
    "sigmas": {"sigmas": [9.0, 3.0, 1.0, 0.5, 0.2, 0.1]},
    "timesteps": {"timesteps": [990.0, 500.0, 400.0, 300.0, 200.0, 100.0]},
    "eta": {"eta": 0.5},
    "guidance_start": {"guidance_start": 0.5},
    "guidance_end": {"guidance_end": 0.5},
    "clip_skip": {"clip_skip": 1},
    "noise_source": {"noise_source": "philox"},
    "subseed": {"subseed": 7, "subseed_strength": 0.5},
    "subseed_strength": {"subseed": 7, "subseed_strength": 0.25},
    "noise_seed_delta": {"noise_seed_delta": 31337},
    "prompt_syntax": {"prompt": "(a:1.3) b c", "prompt_syntax": "a1111_no_norm"},
    "another prompt_syntax": {"prompt": "(a:1.3) b c", "prompt_syntax": "comfy"},
    "lms": {"sampler": "lms"},
    "solver_order": {"sampler": "lms", "solver_order": 2},
    "height": {"height": 128},
}


def test_every_parameter_changes_the_picture(exact: Service) -> None:
    drawn = {
        name: images(submit(exact, **{**SUBJECT, "num_inference_steps": 6, **change}))[0]
        for name, change in CHANGES.items()
    }
    same = {one: [other for other in drawn if drawn[other] == drawn[one]] for one in drawn}
    assert {one: others for one, others in same.items() if len(others) > 1} == {
        name: ["nothing", "nothing again"] for name in ("nothing", "nothing again")
    }


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [("[a:b:0]", "b"), ("[a:b:99]", "a"), ("[a|a]", "a"), ("a AND b :0", "a"), ("a BREAK", "a"), ("(a:1)", "a")],
)
def test_prompts_that_mean_the_same_draw_the_same(exact: Service, prompt: str, meant: str) -> None:
    fields = {**SUBJECT, "prompt_syntax": "a1111", "num_inference_steps": 6}
    one, other = (images(submit(exact, **{**fields, "prompt": text})) for text in (prompt, meant))
    assert one == other


def test_metadata_repeats_the_picture(service: Service) -> None:
    sink = submit(service, prompt="a b", sigmas=[9.0, 1 / 3, 0.1], sampler="lms", solver_order=2, subseed_strength=0.5)
    first = images(sink)
    again = submit(service, **sink.metadata["request"])
    assert images(again) == first
    assert sink.metadata["timing"]["unet_rows"] == 6


def test_a_png_repeats_itself(service: Service) -> None:
    fields = {**SUBJECT, "output_format": "png", "num_images": 3, "subseed": 2, "subseed_strength": 0.5}
    for data in images(submit(service, **fields)):
        assert images(submit(service, **read_fields(data))) == [data]


def test_metadata_has_the_tokens_of_every_text(service: Service) -> None:
    def tokens(**fields: Any) -> list[dict[str, Any]]:
        sink = submit(service, **fields, num_inference_steps=2)
        images(sink)
        found: list[dict[str, Any]] = sink.metadata["tokens"]
        return found

    long = " ".join("abcde" * 20)
    expected = {"text": "a b", "used": 2, "dropped": 0, "chunks": 1}
    assert tokens(prompt="a b", guidance_scale=1.0) == [expected]
    assert tokens(prompt="a b", negative_prompt="c") == [expected, {**expected, "text": "c", "used": 1}]
    cut = {"text": long, "used": 75, "dropped": 25, "chunks": 1}
    assert tokens(prompt=long, guidance_scale=1.0) == [cut]
    assert tokens(prompt=long, guidance_scale=1.0, prompt_syntax="a1111") == [
        {**cut, "used": 100, "dropped": 0, "chunks": 2}
    ]
    said = tokens(prompt="[a:b c:1] AND d", prompt_syntax="a1111", negative_prompt="e")
    assert sorted((text["text"].strip(), text["used"]) for text in said) == [("a", 1), ("b c", 2), ("d", 1), ("e", 1)]


def test_prompts_of_other_lengths_never_share_a_call(exact: Service, runners: dict[str, BlockableRunner]) -> None:
    fields = {**SUBJECT, "prompt_syntax": "a1111", "num_inference_steps": 6}
    lengths = [{**fields, "prompt": " ".join("abcde" * count)} for count in (1, 20, 2, 40)]
    alone = [images(submit(exact, **one)) for one in lengths]
    assert len({picture for (picture,) in alone}) == 4
    runners["unet"].rows.clear()
    runners["unet"].hold()
    sinks = [submit(exact, **one) for one in lengths]
    runners["unet"].release()
    assert [images(sink) for sink in sinks] == alone
    # Two prompts of one chunk share their calls; those of two and of three have theirs, all of six steps.
    assert sum(runners["unet"].rows) == 4 * 2 * 6
    assert set(runners["unet"].rows) == {2, 4}


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"guidance_start": 0.5}, [1, 1, 2, 2]),
        ({"guidance_end": 0.25}, [2, 1, 1, 1]),
        ({"prompt": "a AND b", "prompt_syntax": "a1111"}, [3] * 4),
        ({"prompt": "a AND b", "prompt_syntax": "a1111", "guidance_scale": 1.0}, [3] * 4),
        ({"sampler": "heun"}, [2] * 7),
        ({"sampler": "pndm", "guidance_scale": 1.0}, [1] * 5),
    ],
)
def test_a_call_has_the_rows_that_its_jobs_need(
    service: Service, runners: dict[str, BlockableRunner], fields: dict[str, Any], rows: list[int]
) -> None:
    sink = submit(service, **{**SUBJECT, "sampler": "euler", "num_inference_steps": 4, **fields})
    images(sink)
    assert runners["unet"].rows == rows
    assert sink.metadata["timing"]["unet_rows"] == sum(rows)


def test_jobs_that_are_guided_later_fit_into_a_call_then(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].hold()
    fields = {"prompt": "a", "num_inference_steps": 4, "guidance_start": 0.5}
    sinks = [submit(service, **fields, seed=seed) for seed in range(20)]
    runners["unet"].release()
    for sink in sinks:
        images(sink)
    assert max(runners["unet"].rows) == 16
    assert sum(runners["unet"].rows) == 20 * 6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": " AND ".join("abcdefghijklmnop")}, ["17 rows", "16", "AND"]),
        (
            {"prompt": "[a|b|c][d|e|f|g][h|i|j|k|l][m|n|o|p|q|r|s]", "num_inference_steps": 99},
            [f"{MAX_TEXTS}", "[a|b]"],
        ),
    ],
)
def test_what_only_the_prompt_tells_is_refused_and_the_others_go_on(
    service: Service, fields: dict[str, Any], said: list[str]
) -> None:
    sinks = [submit(service, prompt_syntax="a1111", **fields), submit(service, prompt="a", num_inference_steps=2)]
    images(sinks[1])
    assert sinks[0].wait()
    assert isinstance(sinks[0].error, InvalidRequest)
    assert all(part in str(sinks[0].error) for part in said)
    assert service.open_replies() == []


UNUSUAL: list[dict[str, Any]] = [
    {"schedule": "karras", "final_sigma": "sigma_min", "timestep_spacing": "linspace"},
    {"final_sigma": "sigma_min", "timestep_spacing": "linspace", "num_inference_steps": 1},
    {"schedule": "karras", "rho": 0.01},
    {"timesteps": [5.5, 5.25]},
    {"timesteps": [999.0, 0.0]},
    {"sigmas": [10_000.0, 0.001]},
]


@pytest.mark.parametrize("fields", UNUSUAL, ids=range(len(UNUSUAL)))
def test_what_was_accepted_is_drawn_or_the_clients_fault(service: Service, fields: dict[str, Any]) -> None:
    sinks = {}
    refused = 0
    for sampler in SAMPLERS:
        try:
            sinks[sampler.name] = submit(service, prompt="a", guidance_scale=1.0, sampler=sampler.name, **fields)
        except InvalidRequest:
            refused += 1
    assert len(sinks) > 2
    assert len(sinks) + refused == len(SAMPLERS)
    assert all(sink.wait() for sink in sinks.values())
    errors = {name: sink.error for name, sink in sinks.items() if sink.error}
    assert {name: error for name, error in errors.items() if not isinstance(error, InvalidRequest)} == {}


def test_a_composition_of_as_many_rows_as_a_call_has_is_drawn(service: Service) -> None:
    assert images(submit(service, prompt=" AND ".join("abcdefghijklmno"), prompt_syntax="a1111", num_inference_steps=1))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_longest_prompts_are_drawn_in_every_format(service: Service, output_format: str) -> None:
    longest = {"prompt": "a" * MAX_PROMPT_BYTES, "negative_prompt": "b" * MAX_PROMPT_BYTES}
    sink = submit(service, **longest, output_format=output_format, num_inference_steps=1)
    assert sink.wait(5.0), "no answer"
    assert len(images(sink)) == 1
    images(submit(service, prompt="a", num_inference_steps=1))


def test_progress_counts_every_step_to_the_end(service: Service) -> None:
    sink = submit(service, prompt="a", num_inference_steps=5, num_images=2, progress_interval=3)
    images(sink)
    assert [event["step"] for event in sink.events] == [3, 6, 9, 10]
    assert {event["total"] for event in sink.events} == {10}


def test_encodings_hold_the_same_picture(service: Service) -> None:
    fields = {"prompt": "a", "seed": 1, "num_inference_steps": 2}
    raw = images(submit(service, **fields, output_format="raw"))[0]
    text = images(submit(service, **fields, output_format="raw", encoding="base64"))[0]
    assert len(raw) == 64 * 64 * 3
    assert base64.b64decode(text) == raw


def test_unguided_image_takes_one_row(service: Service, runners: dict[str, BlockableRunner]) -> None:
    images(submit(service, prompt="a", guidance_scale=1.0, num_inference_steps=2))
    assert runners["unet"].rows == [1, 1]


def test_prompts_are_encoded_once(service: Service, runners: dict[str, BlockableRunner]) -> None:
    for seed in range(3):
        images(submit(service, prompt="a b", negative_prompt="c", seed=seed, num_inference_steps=1))
    assert runners["text_encoder"].rows == [2]


def test_bad_request_is_refused_and_the_others_go_on(service: Service) -> None:
    good = submit(service, prompt="a", num_inference_steps=30)
    with pytest.raises(InvalidRequest, match="num_inference_steps"):
        submit(service, prompt="a", num_inference_steps=0)
    images(good)


def test_unet_failure_fails_only_the_jobs_of_that_call(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].failures.append(ProviderError("out of memory"))
    assert images(submit(service, prompt="a")), "one failure is forgiven"
    runners["unet"].failures.extend([ProviderError("out of memory"), ProviderError("out of memory")])
    broken = submit(service, prompt="a")
    assert broken.wait()
    assert isinstance(broken.error, ServerError)
    assert "out of memory" in str(broken.error)
    images(submit(service, prompt="a", num_inference_steps=2))


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_component_failure_is_answered(service: Service, runners: dict[str, BlockableRunner], component: str) -> None:
    runners[component].failures.append(ProviderError("gone"))
    broken = submit(service, prompt="z z", num_inference_steps=1)
    assert broken.wait()
    assert "gone" in str(broken.error)
    images(submit(service, prompt="y y", num_inference_steps=1))


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_a_request_that_does_not_fit_a_component_is_told_so(
    service: Service, runners: dict[str, BlockableRunner], component: str
) -> None:
    runners[component].failures.extend([FeedError("its plan takes 1x77x8 to 16x231x8")] * 2)
    refused = submit(service, prompt="x x", num_inference_steps=1)
    assert refused.wait()
    assert isinstance(refused.error, InvalidRequest)
    assert "its plan takes 1x77x8 to 16x231x8" in str(refused.error)
    runners[component].failures.clear()
    images(submit(service, prompt="w w", num_inference_steps=1))


def test_full_queue_is_answered_at_once(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].hold()
    accepted = [submit(service, prompt="a", num_images=8, num_inference_steps=1) for _ in range(5)]
    with pytest.raises(Overloaded, match="40 images"):
        submit(service, prompt="a")
    runners["unet"].release()
    for sink in accepted:
        assert len(images(sink)) == 8
    images(submit(service, prompt="a", num_inference_steps=1))


def test_cancelled_request_frees_its_rows(service: Service, runners: dict[str, BlockableRunner]) -> None:
    sink = ListSink()
    reply = service.submit({"prompt": ["a"], "num_inference_steps": [500]}, sink)
    wait_for(lambda: len(runners["unet"].rows) > 3)
    assert reply is not None
    service.give_up(reply, "the client left")
    assert sink.wait()
    assert isinstance(sink.error, Cancelled)
    calls = len(runners["unet"].rows)
    time.sleep(0.05)
    assert len(runners["unet"].rows) == calls
    assert service.open_replies() == []


def test_a_request_is_cancelled_by_its_id(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].hold()
    named = [submit(service, prompt="a", request_id="x", seed=i) for i in range(2)]
    other = submit(service, prompt="a", num_inference_steps=3)
    answer = submit(service, cancel="x")
    assert answer.metadata == {"cancelled": 2}
    runners["unet"].release()
    for sink in named:
        assert sink.wait()
        assert isinstance(sink.error, Cancelled)
    images(other)
    with pytest.raises(NotFound, match="'x'"):
        submit(service, cancel="x")
    with pytest.raises(InvalidRequest, match="alone"):
        submit(service, cancel="x", prompt="a")


def test_a_partial_result_is_what_there_is(service: Service, runners: dict[str, BlockableRunner]) -> None:
    sink = submit(service, prompt="a", num_inference_steps=500, request_id="x", partial_result=1, num_images=2)
    wait_for(lambda: len(runners["unet"].rows) > 5)
    submit(service, cancel="x")
    assert len(images(sink)) == 2
    steps = sink.metadata["partial"]["steps_done"]
    assert all(5 <= steps[index] < 500 for index in ("0", "1"))
    assert "cancelled by its id" in sink.metadata["partial"]["reason"]


def test_previews_show_images_on_their_way(service: Service) -> None:
    sink = submit(service, prompt="a", num_inference_steps=40, preview_interval=10)
    images(sink)
    steps = [event["step"] for event, _ in sink.previews]
    assert set(steps) <= {10, 20, 30}
    assert steps == sorted(steps)
    for event, data in sink.previews:
        assert event["image"] == 0
        assert max(Image.open(io.BytesIO(data)).size) <= 256


def test_images_can_come_one_by_one(service: Service) -> None:
    together = images(submit(service, prompt="a", num_images=3, seed=1, output_format="raw", num_inference_steps=3))
    sink = submit(
        service, prompt="a", num_images=3, seed=1, output_format="raw", num_inference_steps=3, stream_images=1
    )
    assert images(sink) == []
    assert {event["image"]: data for event, data in sink.streamed} == dict(enumerate(together))


def test_a_flood_of_prompts_does_not_hold_up_another_client(
    service: Service, runners: dict[str, BlockableRunner]
) -> None:
    runners["text_encoder"].hold()
    words = "abcdefghijklmnopqrstuvwxyz"
    flood = [
        submit(service, prompt=f"{a} {b}", client_id="many", num_inference_steps=20) for a in "ab" for b in words[:13]
    ]
    other = submit(service, prompt="z z z", client_id="one", num_inference_steps=1)
    runners["text_encoder"].release()
    assert images(other)
    assert sum(sink.answers for sink in flood) < 13
    for sink in flood:
        assert images(sink)


def test_a_kept_answer_is_given_again(fake_export: Path, runners: dict[str, BlockableRunner]) -> None:
    config = ServerConfig(model=fake_export, provider="fake", response_cache_bytes=1 << 20)
    service = Service(Checkpoints([Pipeline(PipelineSpec.read(fake_export), fake_export, runners)]), config)
    service.start()
    first = images(submit(service, prompt="a", seed=1, num_inference_steps=2))
    wait_for(lambda: not service.open_replies())
    calls = len(runners["unet"].rows)
    again = submit(service, prompt="a", seed=1, num_inference_steps=2, client_id="another", priority=3)
    assert images(again) == first
    assert again.metadata["cached"] is True
    assert len(runners["unet"].rows) == calls
    images(submit(service, prompt="a", num_inference_steps=2))
    assert len(runners["unet"].rows) > calls, "a random seed is drawn anew"
    service.close()


def test_timeout_is_answered(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].hold()
    sink = submit(service, prompt="a", timeout_ms=60)
    time.sleep(0.1)
    runners["unet"].release()
    assert sink.wait()
    assert isinstance(sink.error, TimedOut)
    assert "timeout_ms" in str(sink.error)


def test_close_answers_everybody(fake_export: Path) -> None:
    config = ServerConfig(model=fake_export, provider="fake")
    service = Service(open_checkpoints(config), config)
    service.start()
    sinks = [submit(service, prompt="a", num_inference_steps=500, seed=i) for i in range(20)]
    service.close()
    for sink in sinks:
        assert sink.wait(1.0)
        assert sink.answers == 1
    with pytest.raises(Overloaded, match="stopping"):
        submit(service, prompt="a")


def test_close_lets_open_requests_finish(fake_export: Path) -> None:
    config = ServerConfig(model=fake_export, provider="fake")
    service = Service(open_checkpoints(config), config)
    service.start()
    sink = submit(service, prompt="a", num_inference_steps=20)
    service.close(drain_seconds=20.0)
    assert len(images(sink)) == 1
