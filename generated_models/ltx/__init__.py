"""Ported pipelines of the ltx family."""
