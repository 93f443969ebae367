"""Ported pipelines of the hunyuan_video1_5 family."""
