"""Ported pipelines of the longcat_image family."""
