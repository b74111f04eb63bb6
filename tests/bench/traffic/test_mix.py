"""Mixed requests."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from bench.traffic.mix import FACES, MALFORMED, Asked, Given, Kind, Mix
from bench.traffic.tasks import TASK_NAMES, Task
from server.errors import InvalidRequest
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
    kinds = itertools.product((4, 20), ("euler", "ddim"), (1.0, 7.5), (128,), (128,), (1, 2))
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
    asked = [Mix().asked(0, Given(guidance=scale)) for scale in (1.0, 5.5, 6.25)]
    assert [one.fields["guidance_scale"] for one in asked] == [1.0, 5.5, 6.25]
    assert asked[0].kind != asked[1].kind == asked[2].kind
