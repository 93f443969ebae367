"""Ported pipelines of the wan family."""
