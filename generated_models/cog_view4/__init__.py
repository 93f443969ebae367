"""Ported pipelines of the cog_view4 family."""
