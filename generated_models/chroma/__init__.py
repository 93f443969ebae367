"""Ported pipelines of the chroma family."""
