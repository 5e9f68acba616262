"""What a benchmark raises where it cannot run."""


class SkippedError(Exception):
    """The message says what is missing."""
