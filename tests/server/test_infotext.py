"""server.infotext: A1111's text as A1111 writes and reads it, and notes in files that draw the picture again."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from server.__main__ import main
from server.errors import InvalidRequest
from server.image import encode_image
from server.infotext import file_texts, infotext, parse_infotext, picture_fields, read_fields
from server.request import Request
from server.sampler_names import SAMPLERS
from tests.fakes import LIMITS

CHECKPOINT = "tests/fake"
PIXELS = np.zeros((8, 8, 3), np.uint8)


def request_of(**fields: Any) -> Request:
    given = {"prompt": "a red circle", "seed": 3, **fields}
    return Request.parse({name: value if isinstance(value, list) else [value] for name, value in given.items()}, LIMITS)


def picture(request: Request, index: int = 0, output_format: str = "png") -> bytes:
    return encode_image(PIXELS, output_format, "binary", file_texts(request, index, CHECKPOINT))


def png_with(**texts: str) -> bytes:
    info, stream = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.fromarray(PIXELS).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def last_line(request: Request, index: int = 0, checkpoint: str = CHECKPOINT) -> list[str]:
    return infotext(request, index, checkpoint).split("\n")[-1].split(", ")


def test_the_text_is_a_prompt_a_negative_prompt_and_pairs() -> None:
    request = request_of(
        prompt="a red circle,\n(large:1.2)",
        negative_prompt="a star: blue",
        sampler="Euler a",
        seed=7,
        num_inference_steps=12,
        guidance_scale=6.5,
        height=192,
        width=128,
    )
    *prompts, _ = infotext(request, 0, CHECKPOINT).split("\n")
    assert prompts == ["a red circle,", "(large:1.2)", "Negative prompt: a star: blue"]
    pairs = last_line(request)
    assert pairs[:2] == ["Steps: 12", "Sampler: Euler a"]
    assert {"CFG scale: 6.5", "Seed: 7", "Size: 128x192", f"Model: {CHECKPOINT}", "RNG: CPU"} <= set(pairs)
    unsaid = ("Variation", "Clip skip", "ENSD", "Eta")
    assert not any(pair.startswith(unsaid) for pair in pairs)


def test_an_empty_negative_prompt_has_no_line() -> None:
    assert infotext(request_of(), 0, CHECKPOINT).startswith("a red circle\nSteps: ")


def test_what_is_not_the_default_has_its_pair() -> None:
    request = request_of(
        subseed=40,
        subseed_strength=0.25,
        clip_skip=1,
        noise_seed_delta=31337,
        num_images=3,
        noise_source="philox",
        sampler="euler_ancestral",
        eta=0.5,
        guidance_scale=7,
    )
    said = {"Variation seed: 42", "Variation seed strength: 0.25", "Clip skip: 2", "ENSD: 31337", "Eta: 0.5", "RNG: NV"}
    assert said | {"Seed: 3", "CFG scale: 7"} <= set(last_line(request, index=2))
    assert "Seed: 5" in last_line(request_of(num_images=3), index=2)


@pytest.mark.parametrize(
    ("schedule", "label"),
    [
        ("karras", "Karras"),
        ("polyexponential", "Polyexponential"),
        ("simple", "Simple"),
        ("sgm_uniform", "SGM Uniform"),
        ("kl_optimal", "KL Optimal"),
        ("align_your_steps", "Align Your Steps"),
        ("ddim_uniform", "DDIM"),
        (None, "Automatic"),
    ],
)
def test_a_schedule_has_the_label_that_a1111_looks_up(schedule: str | None, label: str) -> None:
    request = request_of(**{} if schedule is None else {"schedule": schedule})
    assert f"Schedule type: {label}" in last_line(request)


@pytest.mark.parametrize(
    ("sampler", "label"),
    [
        ("euler_ancestral", "Euler a"),
        ("dpmpp_2m", "DPM++ 2M"),
        ("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun"),
        ("dpmpp_2s_ancestral", "DPM++ 2S a"),
        ("dpm2_ancestral", "DPM2 a"),
        ("pndm", "PLMS"),
        ("unipc", "UniPC"),
        ("ddim", "DDIM"),
    ],
)
def test_a_sampler_has_the_label_that_a1111_looks_up(sampler: str, label: str) -> None:
    assert f"Sampler: {label}" in last_line(request_of(sampler=sampler))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain name", "plain name"),
        ("a, b", '"a, b"'),
        ("v1: x", '"v1: x"'),
        ('größe, "x"', '"größe, \\"x\\""'),
        ("two\nlines", '"two\\nlines"'),
    ],
)
def test_a_value_with_a_comma_colon_or_line_break_is_quoted_as_json(name: str, written: str) -> None:
    line = infotext(request_of(), 0, name).split("\n")[-1]
    assert f", Model: {written}, " in line
    assert parse_infotext(infotext(request_of(), 0, name))["seed"] == 3


@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
def test_our_own_text_is_read_back(sampler: str) -> None:
    request = request_of(
        prompt="one,\ntwo",
        negative_prompt="three\nfour",
        sampler=sampler,
        prompt_syntax="a1111",
        height=192,
        width=128,
        subseed=9,
        subseed_strength=0.5,
        clip_skip=2,
        noise_seed_delta=1,
    )
    fields = parse_infotext(infotext(request, 0, CHECKPOINT))
    again = Request.parse({name: [value] for name, value in fields.items()}, LIMITS)
    assert again == replace(request, schedule=again.schedule)
    assert again.schedule in (None, "normal")


MODERN = """\
masterpiece, (1girl:1.2), [[blurry]] forest, cinematic light,
in the style of <lora:ghibli:0.8>, "quoted", 50mm: f/1.8
Negative prompt: (worst quality, low quality:1.4), bad anatomy,
text, watermark
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 3141592653, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE: vae-ft-mse-840000-ema-pruned.ckpt, Variation seed: 27182818, \
Variation seed strength: 0.25, Clip skip: 2, ENSD: 31337, RNG: NV, \
ControlNet 0: "Module: canny, Seed: 5, Size: 64x64, Note: \\"Steps: 1\\"", Lora hashes: "ghibli: 6b1d7b6bd9b2", \
Hires upscale: 2, Hires steps: 10, Hires upscaler: 4x-UltraSharp, Version: v1.10.1"""
OLD = """\
girl with an artist's beret, by Alphonse Mucha and Charlie Bowater, ((eyeshadow)), (coquettish)
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b, RNG: CPU"""
ANCESTRAL = """\
a lighthouse
Negative prompt: fog
Steps: 30, Sampler: Euler a, Schedule type: Automatic, CFG scale: 11.5, Seed: 0, Size: 768x512, Clip skip: 1, RNG: CPU\
"""
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": (
        MODERN,
        {
            "prompt": "masterpiece, (1girl:1.2), [[blurry]] forest, cinematic light,\n"
            'in the style of <lora:ghibli:0.8>, "quoted", 50mm: f/1.8',
            "negative_prompt": "(worst quality, low quality:1.4), bad anatomy,\ntext, watermark",
            "num_inference_steps": 28,
            "sampler": "dpmpp_2m_sde",
            "schedule": "karras",
            "guidance_scale": 6.5,
            "seed": 3141592653,
            "width": 512,
            "height": 768,
            "subseed": 27182818,
            "subseed_strength": 0.25,
            "clip_skip": 1,
            "noise_seed_delta": 31337,
            "noise_source": "philox",
            "prompt_syntax": "a1111",
        },
    ),
    "old": (
        OLD,
        {
            "prompt": "girl with an artist's beret, by Alphonse Mucha and Charlie Bowater, ((eyeshadow)), (coquettish)",
            "negative_prompt": "",
            "num_inference_steps": 20,
            "sampler": "dpmpp_2m",
            "schedule": "karras",
            "guidance_scale": 7.0,
            "seed": 965400086,
            "width": 512,
            "height": 512,
            "noise_source": "cpu",
            "prompt_syntax": "a1111",
        },
    ),
    "ancestral": (
        ANCESTRAL,
        {
            "prompt": "a lighthouse",
            "negative_prompt": "fog",
            "num_inference_steps": 30,
            "clip_skip": 0,
            "sampler": "euler_ancestral",
            "schedule": "normal",
            "guidance_scale": 11.5,
            "seed": 0,
            "width": 768,
            "height": 512,
            "noise_source": "cpu",
            "prompt_syntax": "a1111",
        },
    ),
    "only a prompt": (
        "a prompt,\nof two lines",
        {"prompt": "a prompt,\nof two lines", "negative_prompt": "", "prompt_syntax": "a1111"},
    ),
}


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ)
def test_texts_of_a1111_are_read(text: str, expected: dict[str, Any]) -> None:
    assert parse_infotext(text) == expected
    assert read_fields(png_with(parameters=text)) == expected


def test_a_text_of_a1111_may_begin_with_the_negative_prompt() -> None:
    fields = parse_infotext("Negative prompt: fog\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8")
    assert (fields["prompt"], fields["negative_prompt"]) == ("", "fog")


def test_a1111_draws_on_the_gpu_unless_the_text_says_otherwise() -> None:
    """A1111 writes no RNG for its default, the stream of CUDA."""
    assert parse_infotext("x\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1")["noise_source"] == "philox"


@pytest.mark.parametrize("label", ["Eta", "Eta DDIM"])
def test_the_share_of_fresh_noise_is_read(label: str) -> None:
    assert parse_infotext(f"x\nSteps: 5, Sampler: DDIM, CFG scale: 7, {label}: 0.67, Seed: 1")["eta"] == 0.67


def refused(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_fields(data)
    return str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"no picture", picture(request_of())[:20]], ids=["empty", "text", "cut off in the header"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert all(part in refused(data) for part in ("no picture", "PNG"))


@pytest.mark.parametrize("data", [png_with(), png_with(comment="nice"), encode_image(PIXELS, "webp", "binary", {})])
def test_a_picture_that_says_nothing_is_refused(data: bytes) -> None:
    assert all(part in refused(data) for part in ("does not say", "PNG"))


@pytest.mark.parametrize("note", ["", "{", "[]", '"text"', "null", "3"])
def test_a_picture_whose_note_is_damaged_is_refused(note: str) -> None:
    refused(png_with(aquatint=note))


@pytest.mark.parametrize(
    "pairs",
    [
        "Steps: many",
        "Steps: 20.5, Seed: 1",
        "Steps: 5, Seed: ",
        "Steps: 5, CFG scale: high, Clip skip: 1",
        "Steps: 5, Clip skip: x",
        'Steps: 5, Lora hashes: "never closed',
        "Steps: 5, Seed: " + "9" * 5000,
    ],
    ids=range(7),
)
def test_a_text_of_a1111_that_is_damaged_is_read_or_refused(pairs: str) -> None:
    with suppress(InvalidRequest):
        assert parse_infotext(f"a\n{pairs}")["prompt"] == "a"


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(['"\n\\', "Negative prompt: x\nSteps: 1"])


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(TEXTS, TEXTS, st.sampled_from(["none", "a1111", "comfy"]), st.integers(0, 2), st.booleans())
def test_a_png_repeats_each_of_its_pictures(prompt: str, negative: str, syntax: str, index: int, varied: bool) -> None:
    request = request_of(
        prompt=prompt,
        negative_prompt=negative,
        prompt_syntax=syntax,
        num_images=3,
        seed=2**60,
        **({"subseed": 5, "subseed_strength": 1 / 3} if varied else {}),
    )
    data = picture(request, index)
    fields = read_fields(data)
    assert fields == picture_fields(request, index)
    seed, subseed = request.seeds(index)
    alone = Request.parse({name: [value] for name, value in fields.items()}, LIMITS)
    assert alone == replace(request, num_images=1, seed=seed, subseed=subseed)
    texts = Image.open(io.BytesIO(data)).info
    assert texts["parameters"] == infotext(request, index, CHECKPOINT)


def test_a_png_repeats_everything_that_makes_the_picture() -> None:
    """What only one request's way depends on is left out."""
    request = request_of(
        sampler="lms",
        solver_order=2,
        sigmas=[14.5, 1 / 3, 0.1],
        final_sigma="sigma_min",
        guidance_rescale=0.7,
        guidance_start=0.1,
        guidance_end=0.9,
        clip_skip=3,
        height=192,
        noise_source="philox",
        noise_seed_delta=7,
        timestep_spacing="trailing",
        priority=3,
        timeout_ms=5,
        progress_interval=2,
        output_format="png",
        encoding="base64",
    )
    fields = {k: v if isinstance(v, list) else [v] for k, v in read_fields(picture(request)).items()}
    plain: dict[str, Any] = {"priority": 0, "timeout_ms": 0, "progress_interval": 0, "encoding": "binary"}
    assert Request.parse(fields, LIMITS) == replace(request, **plain)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["a red circle", 'größer 🙂 "蓝"\n\n(x:1.2)'])
def test_jpeg_and_webp_have_the_text_as_exif_user_comment(output_format: str, prompt: str) -> None:
    request = request_of(prompt=prompt)
    exif = Image.open(io.BytesIO(picture(request, output_format=output_format))).getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16be") == infotext(request, 0, CHECKPOINT)


class FakeClient:
    """Keeps what it was asked for."""

    asked: dict[str, Any]

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def stream(self, on_progress: Any, **fields: Any) -> Any:
        FakeClient.asked = fields
        raise InvalidRequest("asked")


def test_generate_repeats_a_picture_with_what_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.client.Client", FakeClient)
    request = request_of(sampler="euler", sigmas=[3.5, 1.0], prompt="größer\n")
    (tmp_path / "x.png").write_bytes(picture(request))
    repeat = ["generate", "--from", str(tmp_path / "x.png"), "--out", str(tmp_path / "y.png")]
    assert main(repeat) == 1
    expected = json.loads(json.dumps(picture_fields(request, 0)))
    assert FakeClient.asked == expected
    assert main([*repeat, "--seed", "8", "--sigmas", "9", "4.5"]) == 1
    assert FakeClient.asked == {**expected, "seed": 8, "sigmas": [9.0, 4.5]}
