"""What a component of a diffusion checkpoint is, and how to run it."""
