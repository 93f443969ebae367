"""Single-process counterparts of the distributed helpers."""
