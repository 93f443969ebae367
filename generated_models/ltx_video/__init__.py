"""Ported pipelines of the ltx_video family."""
