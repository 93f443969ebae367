"""Ported pipelines of the stable_audio_3 family."""
