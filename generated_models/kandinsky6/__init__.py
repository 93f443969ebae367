"""Ported pipelines of the kandinsky6 family."""
