"""Ported pipelines of the sana_video family."""
