"""Ported pipelines of the any_flow family."""
