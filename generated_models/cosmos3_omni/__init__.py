"""Ported pipelines of the cosmos3_omni family."""
