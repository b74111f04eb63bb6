"""Requests to pixels: the in-flight denoising loop and its Triton faces."""
