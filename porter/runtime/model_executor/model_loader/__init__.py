"""Copying checkpoint tensors into parameters."""
