"""Ported pipelines of the latte family."""
