"""The whole service on fake networks: company never shows in a picture, and nobody is left unanswered."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import ProviderError
from server.config import ServerConfig
from server.errors import Cancelled, InvalidRequest, Overloaded, ServerError
from server.pipeline import open_pipeline
from server.service import Service
from tests.fakes import BlockableRunner, ListSink

SUBJECT: dict[str, Any] = {"prompt": "a b c", "negative_prompt": "d", "seed": 5, "sampler": "euler_ancestral"}
NEIGHBOURS: list[dict[str, Any]] = [
    {"prompt": "e f", "seed": 6, "sampler": "euler", "num_inference_steps": 31},
    {"prompt": "g", "seed": 7, "sampler": "ddim", "guidance_scale": 1.0, "num_inference_steps": 7},
    {"prompt": "h i j", "seed": 8, "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 0.0},
    {"prompt": "k", "seed": 9, "sampler": "dpmpp_2m", "num_inference_steps": 3},
    {"prompt": "l", "seed": 10, "sampler": "euler_ancestral", "num_inference_steps": 44},
    {"prompt": "a b c", "seed": 5, "sampler": "ddim", "schedule": "karras", "guidance_scale": 12.0},
    {"prompt": "m", "seed": 11, "sampler": "euler", "schedule": "karras", "num_inference_steps": 1},
]


def submit(service: Service, **fields: Any) -> ListSink:
    sink = ListSink()
    service.submit({name: [value] for name, value in fields.items()}, sink)
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


def test_image_is_the_same_alone_in_company_and_when_joining_mid_flight(
    service: Service, runners: dict[str, BlockableRunner]
) -> None:
    unet = runners["unet"]
    alone = images(submit(service, **SUBJECT))

    unet.hold()
    subject, *others = [submit(service, **fields) for fields in (SUBJECT, *NEIGHBOURS)]
    unet.release()
    together = images(subject)
    for other in others:
        images(other)
    assert max(unet.rows) >= 8

    earlier = [submit(service, **fields) for fields in NEIGHBOURS]
    calls = len(unet.rows)
    wait_for(lambda: len(unet.rows) > calls + 2)
    late = images(submit(service, **SUBJECT))
    for other in earlier:
        images(other)
    assert alone == together == late


def test_num_images_equal_single_requests_with_following_seeds(service: Service) -> None:
    together = images(submit(service, **{**SUBJECT, "num_images": 3}))
    single = [images(submit(service, **{**SUBJECT, "seed": 5 + i}))[0] for i in range(3)]
    assert together == single
    assert len(set(together)) == 3


def test_every_parameter_changes_the_picture(service: Service) -> None:
    base = {**SUBJECT, "num_inference_steps": 6}
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 6},
        {"prompt": "x"},
        {"negative_prompt": "x"},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 7},
        {"sampler": "euler"},
        {"schedule": "karras"},
        {"height": 128},
    ]
    drawn = [images(submit(service, **{**base, **change}))[0] for change in changes]
    assert len(set(drawn)) == len(changes)


def test_metadata_repeats_the_picture(service: Service) -> None:
    sink = submit(service, prompt="a b", num_inference_steps=5)
    first = images(sink)
    again = submit(service, **sink.metadata["request"])
    assert images(again) == first
    assert sink.metadata["tokens"]["prompt"] == {"used": 2, "dropped": 0}
    assert sink.metadata["timing"]["unet_rows"] == 10


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
    reply.cancelled = True
    assert sink.wait()
    assert isinstance(sink.error, Cancelled)
    calls = len(runners["unet"].rows)
    time.sleep(0.05)
    assert len(runners["unet"].rows) == calls
    assert service.open_replies() == []


def test_timeout_is_answered(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].hold()
    sink = submit(service, prompt="a", timeout_ms=20)
    time.sleep(0.05)
    runners["unet"].release()
    assert sink.wait()
    assert isinstance(sink.error, Overloaded)
    assert "timeout_ms" in str(sink.error)


def test_close_answers_everybody(fake_export: Path) -> None:
    config = ServerConfig(model=fake_export, provider="fake")
    service = Service(open_pipeline(config), config)
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
    service = Service(open_pipeline(config), config)
    service.start()
    sink = submit(service, prompt="a", num_inference_steps=20)
    service.close(drain_seconds=20.0)
    assert len(images(sink)) == 1
