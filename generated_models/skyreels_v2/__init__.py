"""Ported pipelines of the skyreels_v2 family."""
