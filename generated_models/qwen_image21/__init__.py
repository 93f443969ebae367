"""Ported pipelines of the qwen_image21 family."""
