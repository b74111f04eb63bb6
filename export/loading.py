"""Networks and tokenizers out of a checkpoint, with the loaders of diffusers, transformers and the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.component import Precision
from export.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from export.checkpoint import Checkpoint

KINDS = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "depth_estimator": ("transformers", "DPTForDepthEstimation"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "": ("diffusers", "ControlNetModel"),
}


def dtype_of(precision: Precision) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def load_network(checkpoint: Checkpoint, part: str, precision: Precision) -> Any:
    """A network in evaluation mode; see `Checkpoint.network`.

    Raises:
        CheckpointError: it cannot be loaded, or holds values that are not finite.
    """
    import diffusers
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    library, name = KINDS[part]
    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    place = checkpoint.weights or checkpoint.folder / part
    if not checkpoint.weights and not _weights_in(place):
        raise CheckpointError(f"{place} holds no weights, in .safetensors or .bin; download the checkpoint again")
    try:
        if checkpoint.weights:
            from export.single_file import load_part

            missing: list[str] = []
            network = load_part(place, checkpoint.folder, part, kind, dtype_of(precision))
        else:
            network, report = kind.from_pretrained(
                place, torch_dtype=dtype_of(precision), variant=_variant(place), output_loading_info=True
            )
            missing = sorted(report["missing_keys"])
    except CheckpointError:
        raise
    except Exception as error:  # safetensors, OSError, pickle, other shapes: whatever the loaders raise
        raise CheckpointError(f"{place} cannot be loaded ({sentence(error)}); download it again") from error
    if missing:  # the loaders would leave these random
        raise CheckpointError(f"{place} cannot be loaded (it lacks {', '.join(missing[:3])}); download it again")
    _check_values(network, place, precision)
    return network.eval()


def _variant(folder: Path) -> str | None:
    """`fp16` where there are only the files that diffusers marks so."""
    files = _weights_in(folder)
    return "fp16" if files and all(".fp16." in name or ".fp16-" in name for name in files) else None


def _weights_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")}


def _check_values(network: Any, place: Path, precision: Precision) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            remedy = "download it again" if precision == "fp32" else "download it again, or export with fp32"
            raise CheckpointError(f"{place} holds values that are not finite in {name} as {precision}; {remedy}")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer as the `tokenizers` library has it.

    Raises:
        CheckpointError: it cannot be loaded, or is not CLIP's.
    """
    from transformers import CLIPTokenizer

    try:
        backend: Tokenizer = CLIPTokenizer.from_pretrained(folder).backend_tokenizer
        ids = [backend.token_to_id(word) for word in ("<|startoftext|>", "<|endoftext|>")]
    except Exception as error:  # as above
        raise CheckpointError(f"{folder} cannot be loaded ({sentence(error)}); download it again") from error
    if None in ids:
        raise CheckpointError(f"{folder} has no <|startoftext|> and <|endoftext|>; it is not a CLIP tokenizer")
    return backend


def download(repository: str) -> Path:
    """What export needs of a hub repository, as a local folder.

    Raises:
        CheckpointError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", *(f"{part}/*.safetensors" if part else "*model.safetensors" for part in KINDS)]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # network, authentication, not found: the hub's own kinds
        raise CheckpointError(
            f"{repository} is no local folder and cannot be downloaded ({sentence(error)})"
        ) from error


def sentence(error: Exception) -> str:
    """The first sentence of an error's text."""
    line = str(error).strip().split("\n")[0]
    return re.split(r"(?<=\S)[.!] +(?=[A-Z])", line)[0][:300] or type(error).__name__
