"""Trained weights on disk: a diffusers folder, or the hub id of one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.catalog import Widths
from engines.component import Family, Task
from export.errors import CheckpointError

# torch, diffusers and transformers take seconds to import: only what loads a network does.
if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from tokenizers import Tokenizer
    from transformers import CLIPTextModel

INDEX_FILE = "model_index.json"
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
SIZES = {
    "unet/config.json": ("sample_size", "cross_attention_dim"),
    "vae/config.json": ("block_out_channels",),
    "text_encoder/config.json": ("num_hidden_layers",),
}
FINGERPRINTED = {".json", ".txt", ".safetensors", ".bin"}


@dataclass(frozen=True)
class Checkpoint:
    """A text-to-image checkpoint of the Stable Diffusion 1.x and 2.x kind.

    Networks are loaded when asked for, in fp32 and evaluation mode.
    """

    folder: Path
    name: str

    @classmethod
    def open(cls, location: str) -> Checkpoint:
        """Open a local diffusers folder, or download the hub repository of that id.

        Raises:
            CheckpointError: it is not there, is not a complete diffusers folder, or is of an unsupported kind.
        """
        folder = Path(location)
        if not folder.is_dir():
            folder = _download(location)
        local = folder.resolve()
        checkpoint = cls(folder, f"{local.parent.name}/{local.name}" if Path(location).is_dir() else location)
        index = checkpoint._json(INDEX_FILE)
        missing = [part for part in PARTS if part not in index or not (folder / part).is_dir()]
        if missing:
            raise CheckpointError(
                f"{folder} has no {', '.join(missing)}; a text-to-image checkpoint has {', '.join(PARTS)}"
            )
        channels = checkpoint.unet_config.get("in_channels")
        if channels != 4 or index.get("_class_name", "").startswith("StableDiffusionXL"):
            raise CheckpointError(
                f"{folder} is a {index.get('_class_name')} whose UNet takes {channels} channels; "
                "export takes text-to-image checkpoints of Stable Diffusion 1.x and 2.x (4 channels)"
            )
        for file, keys in SIZES.items():
            if missing := [key for key in keys if key not in checkpoint._json(file)]:
                raise CheckpointError(
                    f"{folder / file} has no {', '.join(missing)}; download or save the checkpoint again"
                )
        return checkpoint

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
    def unet_config(self) -> dict[str, Any]:
        return self._json("unet/config.json")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return self._json("vae/config.json")

    @cached_property
    def text_config(self) -> dict[str, Any]:
        return self._json("text_encoder/config.json")

    @cached_property
    def schedule(self) -> dict[str, Any]:
        """The scheduler's configuration as diffusers' pipeline has it: `steps_offset` is 1 whatever the file says."""
        return {"prediction_type": "epsilon", **self._json("scheduler/scheduler_config.json"), "steps_offset": 1}

    @property
    def family(self) -> Family:
        """Stable Diffusion 2 has OpenCLIP's text encoder, whose activation is plain GELU."""
        return "sd2" if self.text_config.get("hidden_act") == "gelu" else "sd1"

    @property
    def task(self) -> Task:
        return "text_to_image"

    @property
    def scaling_factor(self) -> float:
        return float(self.vae_config.get("scaling_factor", 0.18215))

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @property
    def native_resolution(self) -> int:
        """The side in pixels of the square pictures that the UNet was trained on."""
        return int(self.unet_config["sample_size"]) * self.downscale

    @property
    def widths(self) -> Widths:
        return Widths(
            context_length=int(self.text_config.get("max_position_embeddings", 77)),
            context_width=int(self.unet_config["cross_attention_dim"]),
            latent_channels=int(self.vae_config.get("latent_channels", 4)),
            unet_channels=int(self.unet_config["in_channels"]),
            downscale=self.downscale,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the configuration and weight files."""
        digest = hashlib.sha256()
        for part in (INDEX_FILE, *PARTS):
            files = [self.folder / part] if part == INDEX_FILE else sorted((self.folder / part).rglob("*"))
            for path in files:
                if path.is_file() and path.suffix in FINGERPRINTED:
                    digest.update(f"{path.relative_to(self.folder)}\0{path.stat().st_size}\0".encode())
                    digest.update(path.read_bytes())
        return digest.hexdigest()

    def text_encoder(self) -> CLIPTextModel:
        from transformers import CLIPTextModel

        return self._load(CLIPTextModel, "text_encoder")

    def unet(self) -> UNet2DConditionModel:
        from diffusers import UNet2DConditionModel

        return self._load(UNet2DConditionModel, "unet")

    def vae(self) -> AutoencoderKL:
        from diffusers import AutoencoderKL

        return self._load(AutoencoderKL, "vae")

    def _load(self, kind: Any, part: str) -> Any:
        import torch
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            network, report = kind.from_pretrained(
                self.folder / part, torch_dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # safetensors, OSError, pickle, other shapes: whatever the loaders raise
            raise CheckpointError(
                f"{self.folder / part} cannot be loaded ({_sentence(error)}); download it again"
            ) from error
        if missing := sorted(report["missing_keys"]):  # the loaders would leave these random
            raise CheckpointError(
                f"{self.folder / part} cannot be loaded (it lacks {', '.join(missing[:3])}); download it again"
            )
        return network.eval()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer as the `tokenizers` library has it, which is all that a server needs."""
        from transformers import CLIPTokenizer

        folder = self.folder / "tokenizer"
        try:
            backend: Tokenizer = CLIPTokenizer.from_pretrained(folder).backend_tokenizer
            ids = [backend.token_to_id(word) for word in ("<|startoftext|>", "<|endoftext|>")]
        except Exception as error:  # as above
            raise CheckpointError(f"{folder} cannot be loaded ({_sentence(error)}); download it again") from error
        if None in ids:
            raise CheckpointError(f"{folder} has no <|startoftext|> and <|endoftext|>; it is not a CLIP tokenizer")
        return backend

    @property
    def pad_token(self) -> str:
        """What fills a prompt up: the end-of-text token for Stable Diffusion 1, "!" (id 0) for 2."""
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            if (self.folder / "tokenizer" / file).exists():
                pad = self._json(f"tokenizer/{file}").get("pad_token")
                if pad is not None:
                    return str(pad["content"] if isinstance(pad, dict) else pad)
        return "<|endoftext|>"


def _download(location: str) -> Path:
    from huggingface_hub import snapshot_download

    if Path(location).exists():
        raise CheckpointError(f"{location} is a file; give a diffusers folder, or a hub id such as owner/name")
    if location.count("/") != 1 or location.startswith((".", "/")):
        raise CheckpointError(f"{location} does not exist; give a diffusers folder, or a hub id such as owner/name")
    patterns = ["*.json", "*.txt", *(f"{part}/*.safetensors" for part in ("text_encoder", "unet", "vae"))]
    try:
        return Path(snapshot_download(location, allow_patterns=patterns))
    except Exception as error:  # network, authentication, not found: the hub's own kinds
        raise CheckpointError(f"{location} is no local folder and cannot be downloaded ({_sentence(error)})") from error


def _sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
