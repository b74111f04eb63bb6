"""How a server is deployed: what `server launch` was told, carried to the models in `config.pbtxt` parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from server.errors import StartupError

Placement: TypeAlias = Literal["in_process", "triton"]
PLACEMENTS: tuple[Placement, ...] = ("in_process", "triton")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One deployment of one exported checkpoint.

    Attributes:
        model: the export folder.
        provider: execution provider of every component; see `engines.runner.open_runner`.
        unet_threads: CPU threads of the UNet; 0 lets the provider choose.
        component_threads: CPU threads of each component that runs once per image.
        max_rows: rows of one UNet call.
        batch_sizes: rows that a compiled UNet takes; empty means any.
        decode_images: images of one VAE decoder call.
        queue_limit: images that may be accepted and unanswered; more are refused.
        text_encoder, vae_decoder: where these components run.
    """

    model: Path
    provider: str = "auto"
    unet_threads: int = 0
    component_threads: int = 1
    max_rows: int = 16
    batch_sizes: tuple[int, ...] = ()
    decode_images: int = 4
    queue_limit: int = 512
    text_encoder: Placement = "triton"
    vae_decoder: Placement = "triton"

    def placement(self, component: str) -> Placement:
        """Where a component runs; the UNet always in the loop's process."""
        places: dict[str, Placement] = {"text_encoder": self.text_encoder, "vae_decoder": self.vae_decoder}
        return places.get(component, "in_process")

    def to_json(self) -> str:
        """As one string, for a `config.pbtxt` parameter."""
        return json.dumps({**asdict(self), "model": str(self.model)})

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """Read what `to_json` wrote.

        Raises:
            StartupError: it is no such text.
        """
        try:
            values: Mapping[str, Any] = json.loads(text)
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            return cls(**{**known, "model": Path(values["model"]), "batch_sizes": tuple(values.get("batch_sizes", ()))})
        except (ValueError, KeyError, TypeError) as error:
            raise StartupError(
                f"the model's `deployment` parameter cannot be read ({error}); start it with `python -m server launch`"
            ) from error
