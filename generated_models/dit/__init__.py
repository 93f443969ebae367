"""Ported pipelines of the dit family."""
