"""Helpers that model classes use."""
