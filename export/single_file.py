"""A checkpoint in one file, with the names that the original training code gave: .safetensors, or .ckpt.

Which network it holds is read off the names and shapes of its tensors. Its configuration is written from
`export.architectures`, so nothing is downloaded but CLIP's tokenizer; diffusers' own converters rename the weights.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from export.architectures import ARCHITECTURES
from export.configuration import write_configuration
from export.errors import CheckpointError
from export.loading import sentence

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
FIRST_WEIGHT = "input_blocks.0.0.weight"
CROSS_WEIGHT = "attn2.to_k.weight"
CONTROL_PREFIXES = ("control_model.", "controlnet_cond_embedding.")
# Width of the context and channels of the UNet. Nothing in the weights tells v-prediction from epsilon.
SIGNATURES: dict[tuple[int, int], tuple[str, ...]] = {
    (768, 4): ("sd15",),
    (768, 9): ("sd15-inpainting",),
    (1024, 4): ("sd21-base", "sd21"),
    (1024, 9): ("sd2-inpainting",),
    (1024, 7): ("x4-upscaler",),
    (2048, 4): ("sdxl",),
    (1280, 4): ("sdxl-refiner",),
}
CONTROL_SIGNATURES = {768: "controlnet-sd15", 2048: "controlnet-sdxl"}
# Of the weights of each part: the file is several times as large as one network.
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner."),
    "text_encoder_2": ("conditioner.",),
    "": ("",),
}
HEADER_LIMIT = 100 << 20


def write_folder(file: Path, folder: Path, architecture: str | None, tokenizer: str | None) -> None:
    """The configuration and tokenizers of a single file, as a diffusers folder without weights.

    Args:
        architecture: its name in `export.architectures`; otherwise found out from the file.
        tokenizer: folder or hub id of CLIP's tokenizer.

    Raises:
        CheckpointError: the file is damaged, of an unsupported kind, or of one of several that look the same.
    """
    name = architecture or detect(file, shapes_of(file))
    chosen = ARCHITECTURES[name]
    write_configuration(chosen, folder, file.name)
    if chosen.tokenizers:
        source = _tokenizer_folder(tokenizer or CLIP_TOKENIZER)
        for part in chosen.tokenizers:
            for tokenizer_file in TOKENIZER_FILES:
                shutil.copyfile(source / tokenizer_file, folder / part / tokenizer_file)


def detect(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The architecture whose tensors these are.

    Raises:
        CheckpointError: none that is supported, or one of several.
    """
    cross = {shape[-1] for name, shape in shapes.items() if name.endswith(CROSS_WEIGHT) and shape}
    if any(name.startswith(CONTROL_PREFIXES) for name in shapes) and cross & CONTROL_SIGNATURES.keys():
        return CONTROL_SIGNATURES[next(iter(cross & CONTROL_SIGNATURES.keys()))]
    channels = next((s[1] for name, s in shapes.items() if name.endswith(FIRST_WEIGHT) and len(s) > 1), 0)
    found = [names for (width, count), names in SIGNATURES.items() if width in cross and count == channels]
    if not found:
        raise CheckpointError(
            f"{file} is none of {', '.join(n for names in SIGNATURES.values() for n in names)} or their ControlNets; "
            "give another file, or a diffusers folder"
        )
    if len(found[0]) > 1:
        raise CheckpointError(
            f"{file} may be {' or '.join(found[0])}, which differ only in what they predict; say --architecture"
        )
    return found[0][0]


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, without reading their values from a .safetensors file.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    if file.suffix != ".safetensors":
        return {name: tuple(value.shape) for name, value in _read_pickle(file).items()}
    damaged = f"{file} is no safetensors file or is cut short; download it again"
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, HEADER_LIMIT)))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max(int(entry["data_offsets"][1]) for entry in tensors.values())
        shapes = {name: tuple(int(size) for size in entry["shape"]) for name, entry in tensors.items()}
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(damaged) from error
    if file.stat().st_size != 8 + length + end:
        raise CheckpointError(damaged)
    return shapes


def load_part(file: Path, folder: Path, part: str, kind: Any, dtype: torch.dtype) -> Any:
    """A network of a single file.

    Args:
        folder: of the configuration, as `write_folder` wrote it.
        part: folder of the network inside it.
        kind: diffusers' or transformers' class.

    Raises:
        CheckpointError: the file lacks some of its weights.
    """
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    weights, options = _read(file, PREFIXES[part]), {"torch_dtype": dtype, "local_files_only": True}
    try:
        if part.startswith("text_encoder"):
            return create_diffusers_clip_model_from_ldm(kind, weights, part, config=str(folder), **options)
        return kind.from_single_file(weights, config=str(folder / part), **options)
    except NotImplementedError as error:  # diffusers leaves such weights on the meta device, and cannot move them
        raise CheckpointError(f"{file} lacks weights of the {part or 'ControlNet'}; download it again") from error


def _read(file: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        return {name: value for name, value in _read_pickle(file).items() if name.startswith(prefixes)}
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(prefixes)}  # noqa: SIM118


def _read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .ckpt; code in it is never run."""
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file} is cut short, or not in the format that torch has had since 1.6; give a .safetensors or .ckpt file"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than weights, and what it holds could be code; give a .safetensors file instead"
        ) from error
    except Exception as error:  # what damaged bytes make of an unpickler: nearly any of Python's own errors
        raise CheckpointError(
            f"{file} cannot be loaded ({sentence(error)}); give a .safetensors or .ckpt file"
        ) from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no table of weights; give a .safetensors file")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _tokenizer_folder(location: str) -> Path:
    """Where CLIP's vocabulary is; the second tokenizer of SDXL and Stable Diffusion 2's share it."""
    folder = Path(location)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(location, allow_patterns=list(TOKENIZER_FILES)))
        except Exception as error:  # network, authentication, not found: the hub's own kinds
            raise CheckpointError(
                f"CLIP's tokenizer cannot be downloaded from {location} ({sentence(error)}); "
                "give --tokenizer a folder with vocab.json and merges.txt"
            ) from error
    if missing := [name for name in TOKENIZER_FILES if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} has no {' and no '.join(missing)}; give --tokenizer CLIP's tokenizer")
    return folder
