"""OpenVINO GenAI's pipeline in C++, compiled for one shape as its documentation advises for speed."""

from __future__ import annotations

from pathlib import Path

from bench.peers.order import SPACING, Order, Setup
from bench.peers.worker import needed

REMEDY = "pip install -e '.[export,peers]'"


class GenaiDrawer:
    """A compiled pipeline.

    It draws several pictures in one call only for one and the same prompt, so it draws an order one by one.
    """

    def __init__(self, setup: Setup) -> None:
        self._genai = needed("openvino_genai", REMEDY)
        folder = Path(setup.work)
        # It needs torch too, which whoever has models already need not have.
        if not (folder / "model_index.json").exists():
            needed("bench.peers.genai_models", REMEDY).convert(Path(setup.checkpoint), folder, SPACING)
        genai = self._genai
        euler = genai.Scheduler.from_config(
            folder / "scheduler" / "scheduler_config.json", genai.Scheduler.Type.EULER_DISCRETE
        )
        self._pipeline = genai.Text2ImagePipeline(str(folder))
        self._pipeline.set_scheduler(euler)
        self._pipeline.reshape(1, setup.height, setup.width, setup.guidance)
        precision = {"fp32": "f32", "bf16": "bf16"}[setup.precision]
        self._pipeline.compile("CPU", INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=setup.threads)

    def draw(self, order: Order) -> bytes:
        """One picture after the other."""
        return b"".join(self._one(single) for single in order.singles())

    def _one(self, order: Order) -> bytes:
        picture: bytes = self._pipeline.generate(
            order.prompts[0],
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            height=order.height,
            width=order.width,
            num_images_per_prompt=1,
            generator=self._genai.TorchGenerator(order.seeds[0]),
        ).data.tobytes()
        return picture


def open_drawer(setup: Setup) -> GenaiDrawer:
    """Convert the checkpoint, unless `setup.work` holds it, and compile it.

    Raises:
        MissingPeerError: openvino-genai is not installed, or what converts the checkpoint; or ours is on a GPU.
    """
    setup.need_cpu("OpenVINO GenAI")
    return GenaiDrawer(setup)
