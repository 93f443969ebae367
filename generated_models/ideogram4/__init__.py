"""Ported pipelines of the ideogram4 family."""
