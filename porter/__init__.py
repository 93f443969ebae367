"""porter: compiles diffusers pipelines into native vLLM-Omni models and proves that both compute the same."""

__version__ = "0.1.0"
