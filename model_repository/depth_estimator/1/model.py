"""Triton's entry point of `depth_estimator`."""

from server.triton_model import ComponentModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
