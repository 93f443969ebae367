"""Ported pipelines of the mochi family."""
