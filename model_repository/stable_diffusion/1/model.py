"""Triton's entry point of `stable_diffusion`."""

from server.triton_model import FaceModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
