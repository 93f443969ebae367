"""Ported pipelines of the qwen_image family."""
