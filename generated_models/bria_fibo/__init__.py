"""Ported pipelines of the bria_fibo family."""
