"""Ported pipelines of the nucleusmoe_image family."""
