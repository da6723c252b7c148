"""What the extra `eval` brings, loaded when it is needed."""

from typing import Any

from manta.errors import DataError


def missing(what: str, package: str) -> DataError:
    """The error to raise where a package of the extra is not installed.

    Args:
        what: needs it, such as the name of a score.
        package: its name.
    """
    return DataError(f"{what} needs {package}; install it with: pip install 'manta[eval]'")


def scipy_stats(what: str) -> Any:
    """`scipy.stats`.

    Args:
        what: needs it, for the message.

    Raises:
        DataError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise missing(what, "scipy") from error
    return stats
