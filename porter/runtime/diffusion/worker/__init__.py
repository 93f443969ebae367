"""What a pipeline's forward receives."""
