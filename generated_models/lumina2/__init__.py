"""Ported pipelines of the lumina2 family."""
