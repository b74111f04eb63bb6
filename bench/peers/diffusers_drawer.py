"""Diffusers' own pipeline, as its users call it."""

from __future__ import annotations

from bench.peers.order import SPACING, Order, Setup
from bench.peers.worker import needed

REMEDY = "pip install -e '.[export]'"


class DiffusersDrawer:
    """A pipeline in memory, with Euler's method.

    Args:
        setup: the precision is that of all its networks, as `torch_dtype` is.
    """

    def __init__(self, setup: Setup) -> None:
        self.torch = needed("torch", REMEDY)
        diffusers = needed("diffusers", REMEDY)
        self.torch.set_num_threads(setup.threads)
        dtype = {"fp32": self.torch.float32, "bf16": self.torch.bfloat16}[setup.precision]
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            setup.checkpoint, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
        )
        self.pipeline.to(setup.device)
        self.pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(
            self.pipeline.scheduler.config, timestep_spacing=SPACING
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, order: Order) -> bytes:
        """All prompts in one call."""
        generators = [self.torch.Generator("cpu").manual_seed(seed) for seed in order.seeds]
        images = self.pipeline(
            list(order.prompts),
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            height=order.height,
            width=order.width,
            generator=generators,
            output_type="np",
        ).images
        pixels: bytes = (images * 255).round().astype("uint8").tobytes()
        return pixels


def open_drawer(setup: Setup) -> DiffusersDrawer:
    """Load the checkpoint.

    Raises:
        MissingPeerError: torch or diffusers is not installed.
    """
    return DiffusersDrawer(setup)
