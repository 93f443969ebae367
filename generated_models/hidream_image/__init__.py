"""Ported pipelines of the hidream_image family."""
