"""Ported pipelines of the allegro family."""
