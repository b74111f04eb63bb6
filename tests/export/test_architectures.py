"""The published architectures have the sizes that were published."""

import pytest
from torch import nn

from engines.catalog import COMPONENTS
from export.architectures import ARCHITECTURES
from export.checkpoint import TASKS
from export.configuration import network_of

CLIP_L, OPENCLIP_H, OPENCLIP_BIG_G, SD_VAE = 123.06, 340.39, 694.66, 83.65

# Millions of parameters.
PUBLISHED = {
    "sd14": {"unet": 859.52, "text_encoder": CLIP_L, "vae": SD_VAE},
    "sd15": {"unet": 859.52, "text_encoder": CLIP_L, "vae": SD_VAE},
    "sd15-inpainting": {"unet": 859.54, "text_encoder": CLIP_L, "vae": SD_VAE},
    "sd20-base": {"unet": 865.91, "text_encoder": OPENCLIP_H, "vae": SD_VAE},
    "sd20": {"unet": 865.91, "text_encoder": OPENCLIP_H, "vae": SD_VAE},
    "sd21-base": {"unet": 865.91, "text_encoder": OPENCLIP_H, "vae": SD_VAE},
    "sd21": {"unet": 865.91, "text_encoder": OPENCLIP_H, "vae": SD_VAE},
    "sd2-inpainting": {"unet": 865.93, "text_encoder": OPENCLIP_H, "vae": SD_VAE},
    "sd2-depth": {"unet": 865.91, "text_encoder": OPENCLIP_H, "vae": SD_VAE, "depth_estimator": 122.38},
    "x4-upscaler": {"unet": 473.40, "text_encoder": OPENCLIP_H, "vae": 55.33},
    "sdxl": {"unet": 2567.46, "text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_BIG_G, "vae": SD_VAE},
    "sdxl-refiner": {"unet": 2259.53, "text_encoder_2": OPENCLIP_BIG_G, "vae": SD_VAE},
    "controlnet-sd15": {"": 361.28},
    "controlnet-sdxl": {"": 1251.01},
}


def millions(network: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2)


def test_every_architecture_is_published() -> None:
    assert set(ARCHITECTURES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    parts = ARCHITECTURES[name].parts
    networks = {folder: part for folder, part in parts.items() if not part.kind.endswith("Scheduler")}
    assert {folder: millions(network_of(part)) for folder, part in networks.items()} == PUBLISHED[name]


def test_the_vae_has_the_published_halves() -> None:
    vae = network_of(ARCHITECTURES["sd15"].parts["vae"])
    assert (millions(vae.get_submodule("encoder")), millions(vae.get_submodule("decoder"))) == (34.16, 49.49)
    assert millions(network_of(ARCHITECTURES["x4-upscaler"].parts["vae"]).get_submodule("decoder")) == 32.97


@pytest.mark.parametrize("name", ["sd20", "sd21", "x4-upscaler"])
def test_v_prediction_is_said(name: str) -> None:
    assert ARCHITECTURES[name].parts["scheduler"].config["prediction_type"] == "v_prediction"


def test_every_task_has_components() -> None:
    assert set(TASKS.values()) | {"refining", "control"} == {task for _, task in COMPONENTS}
