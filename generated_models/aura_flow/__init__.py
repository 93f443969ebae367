"""Ported pipelines of the aura_flow family."""
