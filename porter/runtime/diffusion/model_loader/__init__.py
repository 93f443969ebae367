"""Building a pipeline and filling it from a checkpoint."""
