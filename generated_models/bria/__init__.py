"""Ported pipelines of the bria family."""
