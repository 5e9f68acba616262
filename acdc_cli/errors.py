"""What can go wrong that the user can mend: one clear message, no traceback, exit code 2."""


class AcdcError(Exception):
    """The message names the cause and the way out. Anything else that is raised is our bug."""


class RecipeError(AcdcError):
    """The recipe does not describe a run that can be made."""


class DataError(AcdcError):
    """A data set is missing, unreadable, damaged or not the one that was meant."""


class ModelError(AcdcError):
    """A model or its weights cannot be built, found or matched."""


class RunError(AcdcError):
    """A run directory or the machine does not allow what was asked."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged or belongs to something else."""


class Stopped(Exception):  # noqa: N818 — nothing went wrong
    """The run was asked to end, is saved, and wants to go on. The message says how."""


RESUME_ME = 75
"""Exit code of a run that ended by `Stopped`: EX_TEMPFAIL of sysexits.h."""
