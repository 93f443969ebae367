"""Ported pipelines of the flux family."""
