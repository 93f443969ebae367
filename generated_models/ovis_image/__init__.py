"""Ported pipelines of the ovis_image family."""
