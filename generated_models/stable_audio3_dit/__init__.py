"""Ported pipelines of the stable_audio3_dit family."""
