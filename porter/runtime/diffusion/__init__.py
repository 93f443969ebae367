"""The diffusion side of the runtime."""
