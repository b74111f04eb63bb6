"""Triton's entry point of `vae_decoder`."""

from server.triton_model import ComponentModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
