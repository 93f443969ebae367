"""Ported pipelines of the hunyuan_image family."""
