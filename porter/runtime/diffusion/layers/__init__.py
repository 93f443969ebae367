"""Layers shared by diffusion transformers."""
