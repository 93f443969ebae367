"""Ported pipelines of the krea2 family."""
