"""Ported pipelines of the flux2 family."""
