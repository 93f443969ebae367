"""Ported pipelines of the kandinsky5 family."""
