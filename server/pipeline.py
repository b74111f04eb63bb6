"""The components of a checkpoint behind three verbs: embed prompts, denoise rows, decode latents."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.component import Component, PipelineSpec
from engines.runner import Runner, open_runner
from server.config import ServerConfig
from server.image import Pixels, to_pixels
from server.noise import TorchGenerator
from server.request import SAMPLER_ALIASES, Limits, Request
from server.samplers import sampler_table
from server.schedule import TrainedSchedule
from server.table import Table
from server.tokenizer import PromptTokenizer, Tokens

EMBEDDINGS_KEPT = 512
TABLES_KEPT = 256
COMPONENTS = ("text_encoder", "unet", "vae_decoder")


class Noise(Protocol):
    """Where a job's noise comes from."""

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Embedding:
    """An encoded prompt: (tokens, width) float32, and how many of its tokens were used and dropped."""

    states: npt.NDArray[np.float32]
    used: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Work:
    """What one job computes with; `negative` is None when it is not guided."""

    table: Table
    noise: Noise
    positive: npt.NDArray[np.float32]
    negative: npt.NDArray[np.float32] | None


class Pipeline:
    """A checkpoint's runners, its tokenizer and its schedule.

    Args:
        spec: the exported checkpoint.
        folder: where it lies.
        runners: one for each of `COMPONENTS`.

    `embed`, `denoise` and `decode` may each be called from a thread of its own.
    """

    def __init__(self, spec: PipelineSpec, folder: Path, runners: Mapping[str, Runner]) -> None:
        self.spec = spec
        self.trained = TrainedSchedule.from_config({**spec.schedule, "prediction_type": spec.prediction_type})
        self._runners = dict(runners)
        self._tokenizer = PromptTokenizer(folder / spec.tokenizer, spec.context_length)
        self._embeddings: OrderedDict[str, Embedding] = OrderedDict()
        self._lock = threading.Lock()
        self._table = lru_cache(TABLES_KEPT)(sampler_table)

    @property
    def limits(self) -> Limits:
        """What requests may ask of this checkpoint."""
        sampler = SAMPLER_ALIASES.get(str(self.spec.schedule.get("_class_name")), "euler")
        return Limits(self.spec.resolutions, sampler, max_steps=min(500, self.trained.length // 2))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latent of a picture of that size in pixels."""
        return self.spec.latent_channels, height // self.spec.downscale, width // self.spec.downscale

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Encode prompts, each once: an LRU cache keeps the last ones."""
        with self._lock:
            found = {text: self._embeddings[text] for text in texts if text in self._embeddings}
            for text in found:
                self._embeddings.move_to_end(text)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            tokens = [self._tokenizer.encode(text) for text in missing]
            fresh = dict(zip(missing, self._encode(tokens), strict=True))
            found.update(fresh)
            with self._lock:
                self._embeddings.update(fresh)
                while len(self._embeddings) > EMBEDDINGS_KEPT:
                    self._embeddings.popitem(last=False)
        return [found[text] for text in texts]

    def _encode(self, tokens: Sequence[Tokens]) -> list[Embedding]:
        outputs = self._runners["text_encoder"].infer({"input_ids": np.stack([t.ids for t in tokens])})
        states = outputs["last_hidden_state"]
        return [Embedding(state.copy(), t.used, t.dropped) for state, t in zip(states, tokens, strict=True)]

    def work(self, request: Request, index: int, positive: Embedding, negative: Embedding | None) -> Work:
        """What image `index` of a request computes with."""
        table = self._table(request.sampler, request.schedule, request.num_inference_steps, self.trained)
        noise = TorchGenerator(request.seed + index)
        return Work(table, noise, positive.states, negative.states if negative else None)

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """One UNet call: (rows, c, h, w)."""
        output: npt.NDArray[np.float32] = self._runners["unet"].infer(feeds)["out_sample"]
        return output

    def decode(self, latents: npt.NDArray[np.float32]) -> Pixels:
        """(n, c, h, w) latents to (n, 8h, 8w, 3) uint8 pixels."""
        scaled = latents / np.float32(self.spec.scaling_factor)
        return to_pixels(self._runners["vae_decoder"].infer({"latent": scaled})["image"])


def open_pipeline(config: ServerConfig, remote: Callable[[Component], Runner] | None = None) -> Pipeline:
    """Load an export folder.

    Args:
        remote: makes the runner of a component that is placed in Triton; without it every component is in process.

    Raises:
        EngineError: a file is missing or damaged, or the provider is not available.
        ScheduleError: the checkpoint's schedule is not supported.
    """
    spec = PipelineSpec.read(config.model)
    runners: dict[str, Runner] = {}
    for name in COMPONENTS:
        component = spec.component(name)
        if remote is not None and config.placement(name) == "triton":
            runners[name] = remote(component)
        else:
            threads = config.unet_threads if name == "unet" else config.component_threads
            runners[name] = open_runner(component, config.model, config.provider, threads)
    return Pipeline(spec, config.model, runners)
