"""From a checked request to the works of its images: texts encoded, pictures read and encoded, noise drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from server.beginnings import from_latent
from server.checkpoints import Checkpoints
from server.conditioning import Condition, Text, conditions, wordings
from server.enlarging import enlarged_latent, enlarged_pixels
from server.errors import InvalidRequest
from server.fields import LATENT_UPSCALERS
from server.image import Pixels
from server.job import Plot
from server.noise import Float32Array, Noise, TorchGenerator
from server.philox import PhiloxGenerator
from server.picture_files import PictureLimits
from server.pipeline import Pipeline
from server.prompt_encoder import Embedding
from server.request import Request
from server.request_checks import check
from server.sources import Finish, Source, from_pixels, open_source, upscaling
from server.table import Table
from server.variation import VariationNoise
from server.work import Work

# Texts of one request: each costs a run of the text encoder.
MAX_TEXTS = 64
SEEDS = 2**64
GENERATORS: dict[str, Callable[[int], Noise]] = {"cpu": TorchGenerator, "philox": PhiloxGenerator}


def request_noise(request: Request, index: int, firsts: int) -> Noise:
    """The generator of image `index` of a request, whose first latent takes so many draws."""
    generator = GENERATORS[request.noise_source]
    seed, subseed = request.seeds(index)
    if request.subseed_strength == 0 and request.noise_seed_delta == 0:
        return generator(seed)
    later = generator((seed + request.noise_seed_delta) % SEEDS) if request.noise_seed_delta else None
    base, sub = generator(seed), generator(subseed)
    return VariationNoise(base, sub, strength=request.subseed_strength, later=later, firsts=firsts)


@dataclass(frozen=True, slots=True)
class Pass:
    """One of the things that a request draws one after the other.

    Attributes:
        request: as if it were a request of its own.
        conditions: one per call.
        reserved: rows that any of its calls takes at most.
    """

    request: Request
    pipeline: Pipeline
    table: Table
    conditions: tuple[Condition, ...]
    reserved: int

    def work(self, index: int, draws: int) -> Work:
        """What image `index` computes with, not begun; to begin takes so many draws."""
        return Work(
            checkpoint=self.pipeline.name,
            height=self.request.height,
            width=self.request.width,
            table=self.table,
            noise=request_noise(self.request, index, draws),
            conditions=self.conditions,
            reserved=self.reserved,
        )


class Preparation:
    """Makes works. Its methods may be called from several threads.

    Args:
        checkpoints: that are loaded.
        limits: of pictures that come.
    """

    def __init__(self, checkpoints: Checkpoints, limits: PictureLimits) -> None:
        self._checkpoints = checkpoints
        self._limits = limits

    def tables(self, request: Request) -> list[tuple[Plot, Table]]:
        """Where each pass of a request is drawn, and its table; cheap where a request like it came before.

        Raises:
            InvalidRequest: levels that a sampler cannot walk on, or a later pass asks too much of its checkpoint.
        """
        first, *later = request.passes()
        found = [self._table(first)]
        for one in later:
            try:
                self._check(one)
                found.append(self._table(one))
            except InvalidRequest as error:
                raise InvalidRequest(f"of the pass for {one.task} to {one.height}x{one.width}: {error}") from error
        return found

    def _table(self, one: Request) -> tuple[Plot, Table]:
        return Plot(one.model, one.height, one.width), self._checkpoints[one.model].table(one)

    def _check(self, later: Request) -> None:
        """`Request.parse` knows the limits of the first pass only."""
        check(later, self._checkpoints.limits(later.model))
        noising = self._checkpoints[later.model].low_resolution
        if noising is not None:
            noising.check(later.noise_level)

    def works(self, request: Request) -> tuple[list[Work], dict[Text, Embedding]]:
        """What each image of a request computes with, and how its texts were encoded.

        Raises:
            InvalidRequest: its prompts change too often, or a picture is damaged.
        """
        made = [self._pass(one) for one in request.passes()]
        passes, embeddings = [one for one, _ in made], made[0][1]
        source = open_source(request, passes[0].pipeline, self._limits)
        return [self._begun(passes, source, index) for index in range(request.num_images)], embeddings

    def _pass(self, request: Request) -> tuple[Pass, dict[Text, Embedding]]:
        pipeline = self._checkpoints[request.model]
        table = pipeline.table(request)
        said = wordings(request, table.calls)
        texts = dict.fromkeys(text for wording in dict.fromkeys(said) for text in wording.texts)
        if len(texts) > MAX_TEXTS:
            raise InvalidRequest(
                f"the prompts change into {len(texts)} different texts on the way; send at most {MAX_TEXTS}: "
                "use fewer [a|b] and [a:b:0.4]"
            )
        embeddings = pipeline.embed(list(texts))
        found = conditions(said, {text: embedding.states for text, embedding in embeddings.items()})
        reserved = max(condition.rows for condition in found)
        return Pass(request, pipeline, table, found, reserved), embeddings

    def _begun(self, passes: Sequence[Pass], source: Source, index: int) -> Work:
        """The work of the first of these passes, which knows how the others follow."""
        first, *rest = passes
        work = replace(source.begin(first.work(index, source.draws)), finish=source.finish)
        if not rest:
            return work
        follow = partial(self._follow, partial(_finished, first.pipeline, source.finish), rest, index)
        return replace(work, then=follow, calls_after=sum(one.table.calls for one in rest))

    def _follow(
        self, picture: Callable[[Float32Array], Pixels], passes: Sequence[Pass], index: int, latent: Float32Array
    ) -> Work:
        """The work that draws on from the finished latent of the pass before, (c, h, w), or from its picture."""
        request, pipeline = passes[0].request, passes[0].pipeline
        if request.task == "upscaling":
            source = Source(upscaling(picture(latent), request, pipeline), draws=2)
        elif request.hires_upscaler in LATENT_UPSCALERS:
            size = pipeline.latent_shape(request.height, request.width)[1:]
            source = Source(partial(from_latent, clean=enlarged_latent(latent, request.hires_upscaler, size)))
        else:
            size = request.height, request.width
            pixels = enlarged_pixels(picture(latent), request.hires_upscaler, size)
            source = Source(from_pixels(pixels, pipeline), draws=2)
        return self._begun(passes, source, index)


def _finished(pipeline: Pipeline, finish: Finish | None, latent: Float32Array) -> Pixels:
    """The picture (h, w, 3) of a finished latent, as a request without further passes is answered with it."""
    pixels = pipeline.decode(latent[None])[0]
    return pixels if finish is None else finish(pixels)
