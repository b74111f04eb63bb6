"""Trained weights on disk: a diffusers folder, the hub id of one, or a single file. What its configuration says."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.catalog import COMPONENTS, Widths
from engines.component import Family, Precision, Task
from export.errors import CheckpointError
from export.fingerprint import files_fingerprint

# torch, diffusers and transformers take seconds to import: only what loads a network does.
if TYPE_CHECKING:
    from tokenizers import Tokenizer

INDEX_FILE = "model_index.json"
# A ControlNet is a folder of one network, without an index.
NETWORK_FILE = "config.json"
CONTROLNET = "ControlNetModel"
# Where a component's weights are, unless in the folder of its name.
# Of `StableDiffusionUpscalePipeline`, where the checkpoint does not say.
MAX_NOISE_LEVEL = 350
PART_OF = {"vae_encoder": "vae", "vae_decoder": "vae", "controlnet": ""}
TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
TASKS: dict[int, Task] = {4: "text_to_image", 5: "depth", 7: "upscaling", 9: "inpainting"}
REFINER_TIME_IDS = 5
# The width of SDXL's pooled prompt, which a ControlNet's configuration only has in a sum.
XL_POOLED_WIDTH = 1280
SIZES = {
    "unet/config.json": ("in_channels", "sample_size", "cross_attention_dim", "block_out_channels"),
    "vae/config.json": ("block_out_channels",),
    "text_encoder/config.json": ("num_hidden_layers",),
    "text_encoder_2/config.json": ("num_hidden_layers", "projection_dim"),
}
CONTROLNET_SIZES = ("in_channels", "cross_attention_dim", "block_out_channels", "conditioning_embedding_out_channels")
SUPPORTED = "Stable Diffusion 1.x, 2.x, XL with its refiner, the x4 upscaler and ControlNets"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of one of the families that `engines.catalog` lists; networks are loaded when asked for.

    Attributes:
        folder: of the configuration, as diffusers has it, and of the weights unless those are in one file.
        weights: the single file of weights; then the folder lasts as long as this object.
    """

    folder: Path
    name: str
    weights: Path | None = None

    @classmethod
    def open(cls, location: str, architecture: str | None = None, tokenizer: str | None = None) -> Checkpoint:
        """Open a local diffusers folder or single file, or download the hub repository of that id.

        Args:
            architecture: of `export.architectures`, for a single file that does not say which it is.
            tokenizer: folder or hub id of CLIP's tokenizer, which a single file does not hold.

        Raises:
            CheckpointError: it is not there, is incomplete, or is of an unsupported kind.
        """
        path = Path(location)
        local = path.resolve()
        if path.is_file():
            from export.single_file import write_folder

            scratch = Path(tempfile.mkdtemp(prefix="aquatint-"))
            checkpoint = cls(scratch, f"{local.parent.name}/{local.stem}", path)
            weakref.finalize(checkpoint, shutil.rmtree, scratch, ignore_errors=True)
            write_folder(path, scratch, architecture, tokenizer)
        elif path.is_dir():
            checkpoint = cls(path, f"{local.parent.name}/{local.name}")
        else:
            checkpoint = cls(_download(location), location)
        checkpoint._check()
        return checkpoint

    def _check(self) -> None:
        self._check_kind()
        sizes = {NETWORK_FILE: CONTROLNET_SIZES} if self.is_controlnet else SIZES
        for file, keys in sizes.items():
            if not self.is_controlnet and Path(file).parts[0] not in self.parts:
                continue
            content = self._json(file)
            if missing := [key for key in keys if key not in content]:
                raise CheckpointError(
                    f"{self.folder / file} has no {', '.join(missing)}; download or save the checkpoint again"
                )
            if odd := [key for key in keys if not _is_size(content[key], several=key.endswith("out_channels"))]:
                raise CheckpointError(
                    f"{self.folder / file} has {odd[0]} {content[odd[0]]!r}, which no supported checkpoint has; "
                    f"export takes {SUPPORTED}"
                )

    def _check_kind(self) -> None:
        if self.is_controlnet:
            return
        index = self._json(INDEX_FILE)
        kind = index.get("_class_name")
        if "unet" not in index or not str(kind).startswith("StableDiffusion"):
            raise CheckpointError(f"{self.folder} is a {kind}; export takes {SUPPORTED}")
        self._check_part("unet")
        self._check_part("text_encoder_2" if self._is_xl else "text_encoder")  # the family shows in its configuration
        channels = self.unet_config.get("in_channels")
        if channels not in TASKS or (self.family, self.task) not in COMPONENTS:
            raise CheckpointError(
                f"{self.folder} is a {kind} whose UNet takes {channels} channels; export takes {SUPPORTED}"
            )
        missing = [part for part in self.parts if part not in index or not (self.folder / part).is_dir()]
        if missing:
            raise CheckpointError(f"{self.folder} has no {', '.join(missing)}; a {kind} has {', '.join(self.parts)}")

    def _check_part(self, part: str) -> None:
        if not (self.folder / part).is_dir():
            raise CheckpointError(f"{self.folder} has no {part}; download or save the checkpoint again")

    def _json(self, relative: str) -> dict[str, Any]:
        path = self.folder / relative
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist; give a complete diffusers folder or a hub id") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); download or save the checkpoint again") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds no JSON object; download or save the checkpoint again")
        return content

    @cached_property
    def is_controlnet(self) -> bool:
        if (self.folder / INDEX_FILE).exists() or not (self.folder / NETWORK_FILE).exists():
            return False
        return self._json(NETWORK_FILE).get("_class_name") == CONTROLNET

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders that a checkpoint of this kind has; "" is a network in the checkpoint's own folder."""
        components = COMPONENTS[self.family, self.task]
        tokenizers = [TOKENIZER_OF[name] for name in components if name in TOKENIZER_OF]
        networks = dict.fromkeys(PART_OF.get(name, name) for name in components)
        return (*tokenizers, *networks, *([] if self.is_controlnet else ["scheduler"]))

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if part in TOKENIZER_OF.values())

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """The configuration of the UNet, or of the ControlNet."""
        return self._json(NETWORK_FILE if self.is_controlnet else "unet/config.json")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return {} if self.is_controlnet else self._json("vae/config.json")

    def text_config(self, part: str) -> dict[str, Any]:
        """The configuration of a text encoder, empty when there is none."""
        return self._json(f"{part}/config.json") if part in self.parts else {}

    @cached_property
    def schedule(self) -> dict[str, Any]:
        """The scheduler's configuration as diffusers' pipeline has it.

        `steps_offset` is 1 whatever the file says, but for the upscaler, whose pipeline takes it as it is.
        """
        if self.is_controlnet:
            return {}
        found = {"prediction_type": "epsilon", **self._json("scheduler/scheduler_config.json")}
        return found if self.task == "upscaling" else {**found, "steps_offset": 1}

    @cached_property
    def low_res_schedule(self) -> dict[str, Any]:
        """The configuration of the noise on an upscaler's picture; empty for others."""
        return self._json("low_res_scheduler/scheduler_config.json") if self.task == "upscaling" else {}

    @property
    def max_noise_level(self) -> int:
        """Of that noise; 0 for others."""
        return int(self._json(INDEX_FILE).get("max_noise_level", MAX_NOISE_LEVEL)) if self.task == "upscaling" else 0

    @cached_property
    def family(self) -> Family:
        """By what the UNet is conditioned on; Stable Diffusion 2 has OpenCLIP's text encoder, with plain GELU."""
        if self.is_controlnet:
            return "controlnet"
        if self.time_ids:
            return "sdxl_refiner" if self.time_ids == REFINER_TIME_IDS else "sdxl"
        if self.unet_config.get("num_class_embeds"):
            return "x4"
        return "sd2" if self._json("text_encoder/config.json").get("hidden_act") == "gelu" else "sd1"

    @property
    def task(self) -> Task:
        if self.is_controlnet:
            return "control"
        return "refining" if self.family == "sdxl_refiner" else TASKS[int(self.unet_config["in_channels"])]

    @property
    def time_ids(self) -> int:
        """Numbers beside the pooled prompt that SDXL's UNets take; 0 for the others."""
        if not self._is_xl:
            return 0
        width = int(self.unet_config["projection_class_embeddings_input_dim"]) - self._pooled_width
        return width // int(self.unet_config["addition_time_embed_dim"])

    @property
    def _is_xl(self) -> bool:
        return bool(self.unet_config.get("addition_embed_type") == "text_time")

    @property
    def _pooled_width(self) -> int:
        if self.unet_config.get("addition_embed_type") != "text_time":
            return 0
        return (
            XL_POOLED_WIDTH if self.is_controlnet else int(self._json("text_encoder_2/config.json")["projection_dim"])
        )

    @property
    def scaling_factor(self) -> float:
        return float(self.vae_config.get("scaling_factor", 0.18215))

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        key, config = "block_out_channels", self.vae_config
        if self.is_controlnet:
            key, config = "conditioning_embedding_out_channels", {**self.unet_config}
        return int(2 ** (len(config[key]) - 1))

    @property
    def native_resolution(self) -> int:
        """The side in pixels of the square pictures that the UNet was trained on."""
        return int(self.unet_config.get("sample_size", 128 if self.time_ids else 64)) * self.downscale

    @property
    def widths(self) -> Widths:
        text, text_2 = (self.text_config(part) for part in TOKENIZER_OF)
        depth = self._json("depth_estimator/config.json") if "depth_estimator" in self.parts else {}
        return Widths(
            context_length=int((text or text_2).get("max_position_embeddings", 77)),
            context_width=int(self.unet_config["cross_attention_dim"]),
            latent_channels=int(self.vae_config.get("latent_channels", 4)),
            unet_channels=int(self.unet_config["in_channels"]),
            downscale=self.downscale,
            text_width=int(text["hidden_size"]) if text_2 and text else 0,
            text_width_2=int(text_2.get("hidden_size", 0)),
            pooled_width=self._pooled_width,
            time_ids=self.time_ids,
            stage_channels=tuple(self.unet_config["block_out_channels"]),
            stage_layers=int(self.unet_config.get("layers_per_block", 2)),
            depth_side=int(depth.get("image_size", 0)),
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the configuration and weight files."""
        paths = [self.folder / (NETWORK_FILE if self.is_controlnet else INDEX_FILE)]
        for part in self.parts:
            paths += sorted((self.folder / part).rglob("*")) if part else sorted(self.folder.iterdir())
        return files_fingerprint(self.folder, paths, self.weights)

    def part_fingerprint(self, component: str) -> str:
        """The same of one component's files; empty where it has none of its own."""
        part = PART_OF.get(component, component)
        if self.weights or not part:
            return ""
        return files_fingerprint(self.folder, sorted((self.folder / part).rglob("*")))

    def network(self, part: str, precision: Precision = "fp32") -> Any:
        """A network in evaluation mode, its weights in that precision.

        Raises:
            CheckpointError: it cannot be loaded, or holds values that are not finite.
        """
        from export.loading import load_network

        return load_network(self, part, precision)

    def tokenizer(self, part: str = "tokenizer") -> Tokenizer:
        """The tokenizer as the `tokenizers` library has it, which is all that a server needs.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        from export.loading import load_tokenizer

        return load_tokenizer(self.folder / part)

    def pad_token(self, part: str = "tokenizer") -> str:
        """What fills a prompt up: the end-of-text token for Stable Diffusion 1, "!" (id 0) for 2."""
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            if (self.folder / part / file).exists():
                pad = self._json(f"{part}/{file}").get("pad_token")
                if pad is not None:
                    return str(pad["content"] if isinstance(pad, dict) else pad)
        return "<|endoftext|>"


def _is_size(value: object, *, several: bool) -> bool:
    numbers = value if several else [value]
    return isinstance(numbers, list) and bool(numbers) and all(type(n) is int and n > 0 for n in numbers)


def _download(location: str) -> Path:
    if location.count("/") != 1 or location.startswith((".", "/")):
        raise CheckpointError(
            f"{location} does not exist; give a diffusers folder, a .safetensors file, or a hub id such as owner/name"
        )
    from export.loading import download

    return download(location)
