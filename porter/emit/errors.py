"""What can be wrong with an output folder."""


class OutputError(ValueError):
    """The output folder cannot be used; nothing was written."""
