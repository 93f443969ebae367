"""Ported pipelines of the rfd4_proteina family."""
