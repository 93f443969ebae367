"""Ported pipelines of the hunyuan_video family."""
