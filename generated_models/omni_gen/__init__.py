"""Ported pipelines of the omni_gen family."""
