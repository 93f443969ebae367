"""Layers and weight loading, under the names that vLLM gives them."""
