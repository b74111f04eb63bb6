"""Diffusers' pipeline with `torch.compile`, as PyTorch advises for CPUs: inductor, weights frozen into the code."""

from __future__ import annotations

import shutil

from bench.peers.diffusers_drawer import REMEDY, DiffusersDrawer
from bench.peers.order import MissingPeerError, Order, Setup
from bench.peers.worker import needed


class CompiledDrawer(DiffusersDrawer):
    """The UNet and the decoder are compiled anew for every shape, by the first picture that has it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        needed("torch._inductor.config", REMEDY).freezing = True
        self.pipeline.unet = self.torch.compile(self.pipeline.unet.eval(), dynamic=False)
        self.pipeline.vae.decoder = self.torch.compile(self.pipeline.vae.decoder.eval(), dynamic=False)

    def draw(self, order: Order) -> bytes:
        """All prompts in one call."""
        # Weights are frozen only where nobody asks for gradients, and not in inference mode.
        with self.torch.no_grad():
            return super().draw(order)


def open_drawer(setup: Setup) -> CompiledDrawer:
    """Load the checkpoint.

    Raises:
        MissingPeerError: torch or diffusers is not installed, or there is no C++ compiler.
    """
    if setup.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise MissingPeerError("torch.compile needs a C++ compiler here: apt-get install g++")
    return CompiledDrawer(setup)
