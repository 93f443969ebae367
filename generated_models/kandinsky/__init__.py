"""Ported pipelines of the kandinsky family."""
