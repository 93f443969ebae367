"""Ported pipelines of the easy_animate family."""
