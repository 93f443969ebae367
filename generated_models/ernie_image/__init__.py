"""Ported pipelines of the ernie_image family."""
