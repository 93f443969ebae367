"""Ported pipelines of the sd3 family."""
