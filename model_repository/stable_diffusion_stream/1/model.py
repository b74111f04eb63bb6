"""Triton's entry point of `stable_diffusion_stream`."""

from server.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
