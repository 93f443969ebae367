"""The attention layer and its backends."""
