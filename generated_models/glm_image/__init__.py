"""Ported pipelines of the glm_image family."""
