"""Ported pipelines of the lumina_next_dit family."""
