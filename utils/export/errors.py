"""The one exception of everything that writes a model or an adapter for another program."""


class ExportError(ValueError):
    """What can't leave the notebook as it is, and what to do instead."""
