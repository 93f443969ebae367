"""Ported pipelines of the ltx2_video family."""
