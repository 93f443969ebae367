"""Ported pipelines of the joy_image_edit family."""
