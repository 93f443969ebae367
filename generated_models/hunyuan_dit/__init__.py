"""Ported pipelines of the hunyuan_dit family."""
