"""Ported pipelines of the longcat_audio_dit family."""
