"""Ported pipelines of the ltx2 family."""
