"""Ported pipelines of the kandinsky2_2 family."""
