"""Ported pipelines of the prx family."""
