"""Ported pipelines of the stable_audio family."""
