"""Every error that a user of manta can cause or meet, by kind.

The command line prints the message of a `MantaError` as one line and leaves with its `exit_code`. A message says what
was wrong, what was received and how to mend it. `assert` is kept for what only a bug of manta itself can break.
"""

from typing import ClassVar


class MantaError(Exception):
    """A failure with one clear line.

    Args:
        message: what was wrong, what was received, how to mend it; one line.
    """

    exit_code: ClassVar[int] = 1
    """Status with which the command line leaves: 1 is a failure, 2 is wrong usage."""
    told = False
    """Whether another process says it, which trains with this one."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class UsageError(MantaError):
    """The request itself is wrong: an unknown verb or flag, or a value out of range."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """A recipe does not describe a run: an unknown key, a value of the wrong type or out of range."""


class DataError(MantaError):
    """A data file is missing, empty, unreadable, or does not hold what it should."""


class ModelError(MantaError):
    """A model folder is missing, corrupt, or does not fit the request."""


class CheckpointError(ModelError):
    """A training run cannot be resumed from what its folder holds."""


class TrainingError(MantaError):
    """Training cannot go on, for example because its loss is no longer finite."""


class RequestError(MantaError):
    """A generation request that the loaded model cannot serve, such as a prompt longer than its window."""
