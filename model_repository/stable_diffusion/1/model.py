"""Triton's entry point of `stable_diffusion`."""

from server.triton_face import FaceModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
