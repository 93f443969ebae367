"""Ported pipelines of the bria_fibo2 family."""
