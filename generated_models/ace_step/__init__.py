"""Ported pipelines of the ace_step family."""
