"""Ported pipelines of the stable_audio_dit family."""
