"""Checkpoints in one file: recognised by their tensors, converted by diffusers, never run as code."""

import io
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export import single_file
from export.architectures import ARCHITECTURES
from export.checkpoint import Checkpoint
from export.errors import CheckpointError
from export.random_weights import write_random_checkpoint
from export.single_file import detect, shapes_of
from tests.small_architectures import WIDTH, small

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

# Names that the original training code gave, by those that diffusers gives: of a residual block, and of the rest.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.": "attn.",
    "final_ln_": "ln_final",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_places() -> Iterator[tuple[str, str]]:
    """Prefixes of a UNet of four stages and two layers, the longer before those that they begin with."""
    yield from UNET_ENDS.items()
    for stage in range(4):
        for layer in range(2):
            block = f"input_blocks.{3 * stage + layer + 1}"
            yield f"down_blocks.{stage}.resnets.{layer}", f"{block}.0"
            yield f"down_blocks.{stage}.attentions.{layer}", f"{block}.1"
        for layer in range(3):
            block = f"output_blocks.{3 * stage + layer}"
            yield f"up_blocks.{stage}.resnets.{layer}", f"{block}.0"
            yield f"up_blocks.{stage}.attentions.{layer}", f"{block}.1"
        yield f"down_blocks.{stage}.downsamplers.0.conv", f"input_blocks.{3 * stage + 3}.0.op"
        yield f"up_blocks.{stage}.upsamplers.0", f"output_blocks.{3 * stage + 2}.{2 if stage else 1}"
    yield from (("mid_block.attentions.0", "middle_block.1"), ("mid_block.resnets.0", "middle_block.0"))
    yield "mid_block.resnets.1", "middle_block.2"


def vae_places() -> Iterator[tuple[str, str]]:
    for stage in range(4):
        for layer in range(2):
            yield f"encoder.down_blocks.{stage}.resnets.{layer}", f"encoder.down.{stage}.block.{layer}"
            yield f"decoder.up_blocks.{stage}.resnets.{layer}", f"decoder.up.{3 - stage}.block.{layer}"
        yield f"encoder.down_blocks.{stage}.downsamplers.0", f"encoder.down.{stage}.downsample"
        yield f"decoder.up_blocks.{stage}.upsamplers.0", f"decoder.up.{3 - stage}.upsample"
    for half in ("encoder", "decoder"):
        yield f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        yield from ((f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}") for i in range(2))
        yield f"{half}.conv_norm_out", f"{half}.norm_out"


def renamed(name: str, places: Iterator[tuple[str, str]], leaves: dict[str, str]) -> str:
    for theirs, original in places:
        if name.startswith(theirs + "."):
            rest = name.removeprefix(theirs)
            if "resnets" in theirs or "mid_block.attentions" in theirs:
                for leaf, original_leaf in leaves.items():
                    rest = rest.replace(f".{leaf}.", f".{original_leaf}.")
            return original + rest
    return name


def original_names(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under the names of the original training code."""
    weights = {}
    for name, value in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        leaves = RESNET if ".resnets." in name else {}
        weights["model.diffusion_model." + renamed(name, unet_places(), leaves)] = value
    for name, value in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        attention = "mid_block.attentions" in name
        new = renamed(name, vae_places(), VAE_ATTENTION if attention else {"conv_shortcut": "nin_shortcut"})
        convolution = attention and value.ndim == 2
        weights["first_stage_model." + new] = value[:, :, None, None].clone() if convolution else value
    text = load_file(folder / "text_encoder/model.safetensors")
    return weights | (openclip_names(text) if folder.name == "sd21" else clip_names(text))


def clip_names(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"cond_stage_model.transformer." + name: value for name, value in text.items()}


def openclip_names(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP keeps queries, keys and values in one tensor, and has a projection that Stable Diffusion 2 ignores."""
    weights = {"text_projection": torch.zeros(WIDTH, WIDTH)}
    for name, value in text.items():
        if any(f".{letter}_proj." in name for letter in "qkv"):
            continue
        new = name.removeprefix("text_model.")
        for theirs, original in OPENCLIP.items():
            new = new.replace(theirs, original)
        weights[new] = value
    for layer in range(3):
        for leaf in ("weight", "bias"):
            place = f"text_model.encoder.layers.{layer}.self_attn"
            parts = [text[f"{place}.{letter}_proj.{leaf}"] for letter in "qkv"]
            weights[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return {"cond_stage_model.model." + name: value for name, value in weights.items()}


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A narrow Stable Diffusion 1 or 2 as diffusers has it; the architecture stays narrow meanwhile."""
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ARCHITECTURES, name, small(name))
        patched.setitem(single_file.SIGNATURES, (WIDTH, 4), (name,))
        made = tmp_path_factory.mktemp("single") / name
        write_random_checkpoint(name, made, 0)
        yield made


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, torch.Tensor]:
    return original_names(folder)


@pytest.fixture(scope="module", params=[".safetensors", ".ckpt"])
def file(request: pytest.FixtureRequest, folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    path = folder.parent / f"model{request.param}"
    if path.suffix == ".ckpt":
        torch.save({"state_dict": weights, "global_step": 470000}, path)
    else:
        save_file(weights, path)
    return path


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_single_file_has_the_weights_of_the_folder(folder: Path, file: Path, part: str) -> None:
    one = Checkpoint.open(str(file), tokenizer=str(folder / "tokenizer"))
    ours, theirs = one.network(part).state_dict(), Checkpoint.open(str(folder)).network(part).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_single_file_says_what_a_folder_says(folder: Path, file: Path) -> None:
    one = Checkpoint.open(str(file), tokenizer=str(folder / "tokenizer"))
    whole = Checkpoint.open(str(folder))
    assert one.name == f"{folder.parent.name}/model"
    assert (one.family, one.task, one.widths) == (whole.family, whole.task, whole.widths)
    assert one.schedule == whole.schedule
    assert one.tokenizer().to_str() == whole.tokenizer().to_str()
    assert one.pad_token() == whole.pad_token()


def test_the_fingerprint_is_of_the_weights(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    prints = []
    for factor in (1, 1, 2):
        save_file({name: value * factor for name, value in weights.items()}, tmp_path / "model.safetensors")
        prints.append(
            Checkpoint.open(str(tmp_path / "model.safetensors"), tokenizer=str(folder / "tokenizer")).fingerprint
        )
    assert prints[0] == prints[1] != prints[2]


def test_weights_that_are_not_there_are_missed(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in weights.items() if not name.endswith("out.2.bias")}, path)
    checkpoint = Checkpoint.open(str(path), tokenizer=str(folder / "tokenizer"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors lacks weights of the unet; download it again"):
        checkpoint.network("unet")


def shapes(width: int, channels: int) -> dict[str, tuple[int, ...]]:
    return {FIRST: (320, channels, 3, 3), CROSS: (320, width)}


@pytest.mark.parametrize(
    ("width", "channels", "name"),
    [
        (768, 4, "sd15"),
        (768, 9, "sd15-inpainting"),
        (1024, 9, "sd2-inpainting"),
        (1024, 7, "x4-upscaler"),
        (2048, 4, "sdxl"),
        (1280, 4, "sdxl-refiner"),
    ],
)
def test_architectures_are_recognised_by_their_tensors(width: int, channels: int, name: str) -> None:
    assert detect(Path("x"), shapes(width, channels)) == name


@pytest.mark.parametrize(("width", "name"), [(768, "controlnet-sd15"), (2048, "controlnet-sdxl")])
@pytest.mark.parametrize("prefix", ["control_model.input_blocks.0.0", "controlnet_cond_embedding.conv_in"])
def test_controlnets_are_recognised_by_either_naming(width: int, name: str, prefix: str) -> None:
    assert detect(Path("x"), {f"{prefix}.weight": (16, 3, 3, 3), CROSS: (320, width)}) == name


def test_what_a_network_predicts_must_be_said() -> None:
    with pytest.raises(CheckpointError, match=r"may be sd21-base or sd21, .* what they predict; say --architecture"):
        detect(Path("x.safetensors"), shapes(1024, 4))


@pytest.mark.parametrize("found", [{}, {"weight": (3,)}, shapes(768, 8), shapes(4096, 16), {FIRST: (320, 4, 3, 3)}])
def test_another_network_is_refused(found: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(
        CheckpointError, match=r"^x\.safetensors is none of sd15, .* or their ControlNets; give another"
    ):
        detect(Path("x.safetensors"), found)


def cut(content: bytes) -> bytes:
    return content[:-10]


def longer(content: bytes) -> bytes:
    return content + b"more"


def empty(content: bytes) -> bytes:
    return b""


def pointer(content: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\n"


def no_header(content: bytes) -> bytes:
    return struct.pack("<Q", 1 << 60) + content[8:]


def listed(content: bytes) -> bytes:
    text = json.dumps([1, 2]).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("damage", [cut, longer, empty, pointer, no_header, listed])
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(100)}, path)
    assert shapes_of(path) == {"weight": (100,)}
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is no safetensors file or is cut short; download it"
    ):
        Checkpoint.open(str(path))


class Harm:
    """What runs when a pickle of it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("whole", [True, False], ids=["torch.save", "pickle"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, whole: bool) -> None:
    harmed, path = tmp_path / "harmed", tmp_path / "model.ckpt"
    content = {"state_dict": {"weight": torch.zeros(3)}, "callbacks": Harm(harmed)}
    if whole:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"model\.ckpt (holds more than weights|is cut short, or not in) ?.*\.safetensors"
    ):
        Checkpoint.open(str(path))
    assert not harmed.exists()
    pickle.load(io.BytesIO(pickle.dumps(Harm(harmed))))
    assert harmed.exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle at all", b"PK\x03\x04 cut zip", b"\x89PNG\r\n"])
def test_a_damaged_ckpt_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.ckpt is cut short, or not in [^\n]+ \.safetensors[^\n]*$"):
        Checkpoint.open(str(path))


def test_a_ckpt_without_a_table_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"holds no table of weights; give a \.safetensors file"):
        Checkpoint.open(str(tmp_path / "model.ckpt"))


def test_a_tokenizer_that_cannot_be_had_is_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repository: str, **options: object) -> str:
        raise ConnectionError("the hub is away\nTraceback follows")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(file))
    assert str(caught.value) == (
        "CLIP's tokenizer cannot be downloaded from openai/clip-vit-large-patch14 (the hub is away); "
        "give --tokenizer a folder with vocab.json and merges.txt"
    )


def test_a_folder_that_is_no_tokenizer_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no merges\.txt; give --tokenizer CLIP's tokenizer"):
        Checkpoint.open(str(file), tokenizer=str(tmp_path))


def test_the_architecture_may_be_said(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "sd14", small("sd14"))
    monkeypatch.setattr(single_file, "shapes_of", None)
    assert Checkpoint.open(str(file), "sd14", str(folder / "tokenizer")).family == "sd1"


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"data_offsets": [0], "shape": [1]}},
        {"a": {"data_offsets": [0, "end"], "shape": [1]}},
        {"a": {"data_offsets": [0, 4], "shape": 1}},
        {"a": {"data_offsets": [0, 4], "shape": ["wide"]}},
        {"a": []},
        [],
        {},
    ],
)
def test_a_header_that_makes_no_sense_is_told(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(CheckpointError, match="no safetensors file or is cut short"):
        shapes_of(tmp_path / "m.safetensors")
