"""Request inputs: prompts and sampling parameters."""
