"""Triton's entry point of `vae_encoder`."""

from server.triton_model import ComponentModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
