"""stable-diffusion.cpp through its Python binding; it knows the published architectures, and no others."""

from __future__ import annotations

import json
from pathlib import Path

from bench.peers.order import MissingPeerError, Order, Setup
from bench.peers.worker import needed

REMEDY = (
    "pip install stable-diffusion-cpp-python==0.4.7, which is compiled for minutes; into another environment, if you "
    "like, and --peer-python stable_diffusion_cpp=ITS/bin/python"
)
# Of the UNet of Stable Diffusion 1 and 2.
WIDTHS = [320, 640, 1280, 1280]


class CppDrawer:
    """A loaded checkpoint; several pictures are drawn one after the other, which is all that its batches do."""

    def __init__(self, setup: Setup) -> None:
        binding = needed("stable_diffusion_cpp", REMEDY)
        config = json.loads((Path(setup.checkpoint) / "scheduler" / "scheduler_config.json").read_text())
        self._model = binding.StableDiffusion(
            model_path=setup.checkpoint,
            n_threads=setup.threads,
            wtype={"fp32": "f32", "bf16": "bf16"}[setup.precision],
            # As torch draws on a CPU.
            rng_type="cpu",
            sampler_rng_type="cpu",
            prediction="v" if config.get("prediction_type") == "v_prediction" else "eps",
            vae_decode_only=True,
            verbose=False,
        )

    def draw(self, order: Order) -> bytes:
        """One picture after the other."""
        return b"".join(self._one(single) for single in order.singles())

    def _one(self, order: Order) -> bytes:
        (image,) = self._model.generate_image(
            prompt=order.prompts[0],
            width=order.width,
            height=order.height,
            cfg_scale=order.guidance,
            sample_method="euler",
            # k-diffusion's: `order.SPACING`.
            scheduler="discrete",
            sample_steps=order.steps,
            seed=order.seeds[0],
        )
        pixels: bytes = image.convert("RGB").tobytes()
        return pixels


def open_drawer(setup: Setup) -> CppDrawer:
    """Load the checkpoint.

    Raises:
        MissingPeerError: the binding is not installed, the checkpoint is of another architecture, or ours is on a GPU.
    """
    setup.need_cpu("stable-diffusion.cpp")
    found = json.loads((Path(setup.checkpoint) / "unet" / "config.json").read_text())["block_out_channels"]
    if found != WIDTHS:
        raise MissingPeerError(
            f"stable-diffusion.cpp draws with the UNets of Stable Diffusion 1 and 2, whose widths are {WIDTHS}; this "
            f"one's are {found}: give a checkpoint of full size"
        )
    return CppDrawer(setup)
