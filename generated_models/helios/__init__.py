"""Ported pipelines of the helios family."""
