"""Ported pipelines of the cog_view3_plus family."""
