"""Ported pipelines of the motif_video family."""
