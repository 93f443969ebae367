"""Ported pipelines of the z_image family."""
