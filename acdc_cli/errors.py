"""Errors that the user can fix: one clear message, no traceback, exit code 2."""


class AcdcError(Exception):
    """The message names the cause and the fix. Any other exception is a bug of acdc."""


class RecipeError(AcdcError):
    """The recipe does not describe a valid run."""


class DataError(AcdcError):
    """A data set is missing, unreadable, damaged or not the expected one."""


class ModelError(AcdcError):
    """A model or its weights cannot be built, found or matched."""


class RunError(AcdcError):
    """The run directory or the machine does not allow the request."""


class NotAFileError(RunError, OSError):
    """A pipe, a device, a socket or a folder stands where a file is expected."""

    def __init__(self, path: object, kind: str) -> None:
        super().__init__(f"{path} is {kind}, not a file")
        # read by those who handle any OSError
        self.strerror = f"it is {kind}, not a file"


class CheckpointError(RunError):
    """A checkpoint is missing, damaged or belongs to something else."""


class Stopped(Exception):  # noqa: N818 — nothing went wrong
    """The run stopped on request, after a checkpoint. The message says how to resume it."""


RESUME_ME = 75
"""Exit code of a run that ended with `Stopped`: EX_TEMPFAIL of sysexits.h."""
