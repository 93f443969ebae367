"""Ported pipelines of the cog_video_x family."""
