"""Triton's entry point of `unet`."""

from server.triton_model import ComponentModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
