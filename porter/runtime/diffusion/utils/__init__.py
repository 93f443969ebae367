"""Small helpers for pipelines."""
