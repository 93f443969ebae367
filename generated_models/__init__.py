"""Generated vLLM-Omni models."""
