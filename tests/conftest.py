"""Checkpoints and exports that tests share; each is made at most once per run."""

import json
import shutil
from pathlib import Path

import pytest

from engines.catalog import Widths, components_of
from engines.component import Component, PipelineSpec

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "export" / "embedded" / "checkpoint"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of random networks so small that they run at once; fp16 weights, as checkpoints are shared."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from export.embedded.vocabulary import load_tokenizer, write_tokenizer

    work = tmp_path_factory.mktemp("tiny")
    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                projection_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    folder = work / "checkpoint"
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(work / "tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint exported for 64x64 and 128x128; tests that change it take a copy."""
    from export.export import Options
    from tests.exports import export_once

    return export_once(tiny_checkpoint, ROOT / "out" / "tests" / "tiny", Options([(64, 64), (128, 128)]))


@pytest.fixture(scope="session")
def embedded_export() -> Path:
    """The checkpoint that ships with the project, exported where `make demo` has it, unless it is up to date."""
    from export.export import Options
    from tests.exports import export_once

    return export_once(EMBEDDED, ROOT / "out" / "export", Options([(128, 128), (192, 192)]))


@pytest.fixture(scope="session")
def fake_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder whose components have no files; `provider="fake"` serves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("fake_export")
    widths = Widths(context_length=77, context_width=8, latent_channels=4, unet_channels=4, downscale=8)
    components = {
        name: Component(name, f"{name}.onnx", inputs, outputs)
        for name, (inputs, outputs) in components_of("sd1", "text_to_image", widths).items()
    }
    spec = PipelineSpec(
        checkpoint="tests/fake",
        family="sd1",
        task="text_to_image",
        fingerprint="0" * 64,
        key="1" * 64,
        prediction_type="epsilon",
        scaling_factor=0.18215,
        latent_channels=4,
        downscale=8,
        schedule={
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
        resolutions=((64, 64), (128, 128)),
        tokenizer="tokenizer",
        tokenizer_sha256="",
        context_length=77,
        text_layers=12,
        components=components,
    )
    spec.write(folder)
    words = ["<start>", "<end>", "<unknown>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    special = {"start": "<start>", "end": "<end>", "pad": "<end>"}
    (folder / "tokenizer" / "config.json").write_text(json.dumps(special))
    return folder
