"""Ported pipelines of the sana family."""
