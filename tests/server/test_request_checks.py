"""server.request_checks: what fits together, and what the checkpoint can do."""

from typing import Any

import pytest

from server.errors import InvalidRequest
from server.request import Limits, Request
from server.sampler_names import SAMPLERS, SCHEDULES

LIMITS = Limits(((512, 512), (768, 512), (512, 768)), sampler="euler", max_images=8)
MAX_SEED = 2**63 - 1
# By their papers: those that may add fresh noise, those of several orders, those with fixed timesteps.
WITH_ETA = ("euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpm_fast", "ddim", "tcd")
WITH_ORDER = ("lms", "dpmpp_singlestep", "deis", "unipc", "unipc_bh1")
WITHOUT_SCHEDULE = ("ddpm", "pndm", "lcm", "tcd", "dpm_fast")
NAMES = [sampler.name for sampler in SAMPLERS]


def parse(limits: Limits = LIMITS, /, **fields: Any) -> Request:
    """A request of single values and of lists."""
    tensors = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    return Request.parse({"prompt": ["a red circle"], **tensors}, limits)


def refusal(limits: Limits = LIMITS, /, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(limits, **fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (512, 512)),
        ({"height": 768}, (768, 512)),
        ({"width": 768}, (512, 768)),
        ({"height": 512}, (512, 512)),
        ({"height": 512, "width": 768}, (512, 768)),
    ],
)
def test_one_side_picks_the_first_resolution_that_has_it(asked: dict[str, Any], size: tuple[int, int]) -> None:
    request = parse(**asked)
    assert (request.height, request.width) == size


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"height": 640}, "640xdefault"),
        ({"width": 8}, "defaultx8"),
        ({"height": 768, "width": 768}, "768x768"),
    ],
)
def test_a_size_that_was_not_exported_is_refused_with_those_that_were(asked: dict[str, Any], shown: str) -> None:
    text = refusal(**asked)
    assert all(part in text for part in ("height", "width", shown, "512x512, 768x512, 512x768", "--resolution"))


def test_more_images_than_the_deployment_allows_are_refused() -> None:
    text = refusal(num_images=9)
    assert all(part in text for part in ("num_images is 9", "at most 8", "more requests"))
    assert parse(num_images=8).num_images == 8


@pytest.mark.parametrize("name", ["seed", "subseed"])
@pytest.mark.parametrize(("seed", "images"), [(MAX_SEED, 2), (MAX_SEED - 6, 8)])
def test_the_seed_of_the_last_image_must_be_a_seed(name: str, seed: int, images: int) -> None:
    varied = 0.5 if name == "subseed" else 0.0
    text = refusal(**{name: seed}, num_images=images, subseed_strength=varied)
    assert all(part in text for part in (f"{name} is {seed}", "num_images", str(MAX_SEED), f"smaller {name}"))
    request = parse(**{name: seed - 1}, num_images=images, subseed_strength=varied)
    assert request.seeds(images - 1)[name == "subseed"] == MAX_SEED


@pytest.mark.parametrize(
    ("strength", "expected"), [(0.0, [(7, 100), (8, 100), (9, 100)]), (0.01, [(7, 100), (7, 101), (7, 102)])]
)
def test_images_count_the_seed_up_and_variations_the_subseed(strength: float, expected: list[tuple[int, int]]) -> None:
    request = parse(seed=7, subseed=100, subseed_strength=strength, num_images=3)
    assert [request.seeds(i) for i in range(3)] == expected


@pytest.mark.parametrize(("scale", "guided"), [(0, False), (1, False), (1.0, False), (1.001, True), (7.5, True)])
def test_guidance_above_one_takes_a_negative_row(scale: float, guided: bool) -> None:
    request = parse(guidance_scale=scale)
    assert request.guided is guided
    assert type(request.guidance_scale) is float


@pytest.mark.parametrize(
    ("label", "sampler", "schedule"),
    [
        ("euler_ancestral", "euler_ancestral", None),
        ("Euler a", "euler_ancestral", None),
        (b"EULER A", "euler_ancestral", None),
        ("dpm_2_ancestral", "dpm2_ancestral", None),
        ("PLMS", "pndm", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", None),
        (b"UniPCMultistepScheduler", "unipc", None),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp_2m_sde_heun", "exponential"),
        ("DPM++ 2M SGM Uniform", "dpmpp_2m", "sgm_uniform"),
    ],
)
def test_a_sampler_may_be_sent_by_any_of_its_names(label: str, sampler: str, schedule: str | None) -> None:
    """All names are in test_sampler_names."""
    request = parse(sampler=label)
    assert (request.sampler, request.schedule) == (sampler, schedule)


@pytest.mark.parametrize(
    ("label", "schedule"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        (b"KL Optimal", "kl_optimal"),
        ("DDIM", "ddim_uniform"),
        *((kind, kind) for kind in SCHEDULES),
    ],
)
def test_a_schedule_may_be_sent_by_any_of_its_names(label: str, schedule: str) -> None:
    assert parse(schedule=label).schedule == schedule


@pytest.mark.parametrize("schedule", ["exponential", "normal"])
def test_a_schedule_that_is_sent_overrules_that_of_the_label(schedule: str) -> None:
    request = parse(sampler="DPM++ 2M Karras", schedule=schedule)
    assert (request.sampler, request.schedule) == ("dpmpp_2m", schedule)


@pytest.mark.parametrize(
    ("option", "value", "heeding"), [("eta", 0.5, WITH_ETA), ("solver_order", 2, WITH_ORDER)], ids=["eta", "order"]
)
@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_a_sampler_does_not_heed_is_refused(
    name: str, option: str, value: float, heeding: tuple[str, ...]
) -> None:
    if name in heeding:
        assert getattr(parse(sampler=name, **{option: value}), option) == value
        return
    text = refusal(sampler=name, **{option: value})
    said, _, offered = text.partition("one of ")
    assert said.startswith(f"{option} is {value}, but {name} has none; ")
    assert set(offered.split(", ")) == set(heeding)


def test_a_class_of_one_order_takes_up_to_3_and_lms_up_to_4() -> None:
    assert parse(sampler="lms", solver_order=4).solver_order == 4
    for name in WITH_ORDER[1:]:
        assert refusal(sampler=name, solver_order=4).startswith(f"solver_order is 4; {name} takes 1 to 3")


@pytest.mark.parametrize("name", WITHOUT_SCHEDULE)
@pytest.mark.parametrize(
    ("fields", "came"), [({"schedule": "Karras"}, "schedule is karras"), ({"sigmas": [9.0, 3.0]}, "sigmas")]
)
def test_levels_of_sigma_are_refused_where_the_timesteps_are_fixed(
    name: str, fields: dict[str, Any], came: str
) -> None:
    text = refusal(sampler=name, **fields)
    assert came in text
    assert f"but {name} " in text
    assert "another sampler" in text


def test_a_label_asks_for_its_schedule_as_a_field_does() -> None:
    assert "pndm" in refusal(sampler="PLMS Karras")
    assert parse(sampler="pndm", schedule="normal").schedule == "normal"
    assert parse(sampler="pndm", timesteps=[901, 1]).timesteps == (901.0, 1.0)


@pytest.mark.parametrize("name", ["sigmas", "timesteps"])
def test_listed_levels_say_how_many_steps_there_are(name: str) -> None:
    assert parse(**{name: [9.0, 5.0, 2.5]}, num_inference_steps=20).num_inference_steps == 3
    assert "num_inference_steps is 3" in refusal(Limits(((8, 8),), max_steps=2), **{name: [9.0, 5.0, 2.5]})


def test_levels_are_listed_once() -> None:
    assert "both sigmas and timesteps" in refusal(sigmas=[3.0], timesteps=[30.0])
    for listed in ({"sigmas": [3.0]}, {"timesteps": [30.0]}):
        text = refusal(**listed, schedule="karras")
        assert all(part in text for part in ("schedule is karras", "listed", "leave"))


def test_the_final_level_is_not_listed() -> None:
    text = refusal(sigmas=[14.6, 1.0, 0.0])
    assert all(part in text for part in ("sigmas", "0", "leave it out"))
    assert parse(timesteps=[999.0, 0.0]).timesteps == (999.0, 0.0)


def test_timesteps_that_were_not_trained_are_refused() -> None:
    limits = Limits(((8, 8),), timesteps=500)
    assert all(part in refusal(limits, timesteps=[500.0, 3.0]) for part in ("timesteps", "500.0", "0 to 499"))
    assert parse(limits, timesteps=[499.0, 3.0]).timesteps == (499.0, 3.0)


def test_more_steps_than_the_schedule_has_room_for_are_refused() -> None:
    limits = Limits(((8, 8),), max_steps=250)
    text = refusal(limits, num_inference_steps=251)
    assert all(part in text for part in ("num_inference_steps is 251", "1 to 250", "fewer"))
    assert parse(limits, num_inference_steps=250).num_inference_steps == 250


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_distilled_checkpoints_take_the_steps_that_they_were_distilled_on(name: str) -> None:
    limits = Limits(((8, 8),), distilled=40)
    text = refusal(limits, sampler=name, num_inference_steps=41)
    assert all(part in text for part in ("num_inference_steps is 41", name, "1 to 40", "fewer"))
    assert parse(limits, sampler=name, num_inference_steps=40).num_inference_steps == 40
    listed = [float(t) for t in range(990, 0, -10)]
    assert parse(limits, sampler=name, timesteps=listed).num_inference_steps == 99


@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.75, 0.25), (1.0, 1.0), (0.0, 0.0)])
def test_guidance_must_begin_before_it_ends(ends: tuple[float, float]) -> None:
    text = refusal(guidance_start=ends[0], guidance_end=ends[1])
    assert all(part in text for part in (f"guidance_start is {ends[0]}", f"guidance_end {ends[1]}", "guidance_scale 1"))
    request = parse(guidance_start=0.25, guidance_end=0.5)
    assert (request.guidance_start, request.guidance_end) == (0.25, 0.5)


def test_a_layer_of_the_text_encoder_must_be_left() -> None:
    limits = Limits(((8, 8),), layers=4)
    assert all(part in refusal(limits, clip_skip=4) for part in ("clip_skip is 4", "4 layers", "0 to 3"))
    assert parse(limits, clip_skip=3).clip_skip == 3


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_long_prompt_is_not_read_anew_for_too_many_steps(name: str) -> None:
    long = {name: "x" * 10_000, "prompt_syntax": "a1111"}
    text = refusal(**long, num_inference_steps=201)
    assert all(
        part in text for part in ("10000 characters", "num_inference_steps is 201", "2000000", "shorter", "fewer")
    )
    assert parse(**long, num_inference_steps=200).num_inference_steps == 200
    assert parse(**{**long, "prompt_syntax": "none"}, num_inference_steps=500).num_inference_steps == 500
