"""Mixed requests."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from bench.traffic.mix import FACES, MALFORMED, Asked, Given, Kind, Mix
from bench.traffic.tasks import NEEDS_SIZE, TASK_NAMES, Task, TaskName
from server.errors import InvalidRequest, ServerError
from server.picture_files import PictureLimits
from server.request import Limits, Request
from server.request_pictures import measure

MIXED = Mix(
    steps=(4, 20),
    samplers=("euler", "ddim"),
    guidance=(1.0, 7.5),
    faces=FACES,
    clients=3,
    cancel_share=0.3,
    malformed_share=0.2,
    preview_interval=2,
    images=(1, 2),
)


def test_a_mix_is_the_same_for_a_seed_and_has_its_shares() -> None:
    requests = [MIXED.asked(number) for number in range(2000)]
    assert requests == list(MIXED.requests(2000))
    assert requests[0] != replace(MIXED, seed=1).asked(0)
    assert sum(one.malformed for one in requests) / 2000 == pytest.approx(0.2, abs=0.03)
    endings = Counter(one.ending for one in requests)
    assert endings["answer"] / 2000 == pytest.approx(0.7, abs=0.03)
    assert min(endings[ending] for ending in ("cancel", "close", "id")) > 120
    kinds = itertools.product((4, 20), ("euler", "ddim"), (1.0, 7.5), (0,), (0,), (1, 2))
    assert {one.kind for one in requests} == {Kind(*kind) for kind in kinds}
    assert len({one.fields["client_id"] for one in requests}) == 3
    assert {"preview_interval" in one.fields for one in requests if one.face == "unary"} == {False}


def test_what_is_malformed_is_refused_and_nothing_else() -> None:
    limits = Limits(((128, 128), (192, 192)))

    def parse(one: Asked) -> Request:
        values = {name: v if isinstance(v, list) else [v] for name, v in one.fields.items()}
        return Request.parse(values, limits)

    requests = [MIXED.asked(number) for number in range(1000)]
    for one in requests:
        if one.malformed:
            with pytest.raises(InvalidRequest):
                parse(one)
        else:
            assert parse(one).num_inference_steps == one.kind.steps
    assert sum(one.malformed for one in requests) > 5 * len(MALFORMED)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_is_a_good_request(name: str) -> None:
    task = Task(name, "other", {"seed": 3})  # type: ignore[arg-type]
    limits = Limits(((128, 128), (128, 192), (192, 192), (192, 256)))
    for one in Mix(tasks=(task,), sizes=(128, (128, 192))).requests(20):
        assert one.kind.task == f"{name} on other seed=3"
        assert (one.fields["model"], one.fields["seed"]) == ("other", 3)
        values = {field: value if isinstance(value, list) else [value] for field, value in one.fields.items()}
        del values["model"]
        # Whether the checkpoint is for that task is known to the server alone.
        if name not in ("depth", "upscaling"):
            Request.parse(values, limits, lambda field, picture: measure(field, picture, PictureLimits()))


def test_recorded_guidance_is_sent_as_it_was_and_makes_no_kinds_of_its_own() -> None:
    asked = [Mix().asked(0, Given(guidance=scale)) for scale in (0.5, 1.0, 5.5, 6.25)]
    assert [one.fields["guidance_scale"] for one in asked] == [0.5, 1.0, 5.5, 6.25]
    assert asked[0].kind == asked[1].kind != asked[2].kind == asked[3].kind


def test_a_size_that_is_not_said_is_not_sent() -> None:
    asked = Mix().asked(0)
    assert not {"height", "width"} & set(asked.fields)
    assert Mix(sizes=((512, 768),)).asked(0).fields["height"] == 512
    assert Mix().asked(0, Given(size=(512, 768))).fields["width"] == 768
    values = {name: [value] for name, value in asked.fields.items()}
    for sizes in (((128, 128),), ((512, 512), (768, 768))):
        request = Request.parse(values, Limits(sizes))
        assert (request.height, request.width) == sizes[0]


@pytest.mark.parametrize("name", ["img2img", "inpainting"])
def test_a_picture_without_a_size_fits_every_server(name: str) -> None:
    asked = Mix(tasks=(Task(name),)).asked(0)  # type: ignore[arg-type]
    values = {field: [value] for field, value in asked.fields.items()}
    limits = Limits(((512, 512), (768, 768)))
    request = Request.parse(values, limits, lambda field, picture: measure(field, picture, PictureLimits()))
    assert (request.height, request.width) == (512, 512)


@pytest.mark.parametrize("name", NEEDS_SIZE)
def test_a_task_whose_picture_must_fit_needs_a_size(name: TaskName) -> None:
    with pytest.raises(ServerError, match=f"{name} begins with a picture that must fit .*: give a size"):
        Mix(tasks=(Task(name),))


def test_salt_changes_the_seeds_of_pictures_and_nothing_else() -> None:
    plain, salted = MIXED.asked(7), replace(MIXED, salt=2**32 - 1).asked(7)
    assert salted.fields["seed"] == (int(str(plain.fields["seed"])) - 1) % 2**32
    assert {**salted.fields, "seed": 0} == {**plain.fields, "seed": 0}
