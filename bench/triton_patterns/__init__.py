"""The serving patterns of NVIDIA's Triton examples, on our engines."""
