"""Ported pipelines of the pix_art family."""
