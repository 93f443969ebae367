"""Reading configuration files of a checkpoint, from a folder or from the hub."""
