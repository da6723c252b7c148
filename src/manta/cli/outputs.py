"""Where a verb writes: seen to before the work begins, and never over what another has written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manta.errors import UsageError

MARK = "report"
"""Key of a report that names what wrote it."""


def claim_file(path: Path | None, verb: str | None = None) -> None:
    """Make sure that a file can be written, and that nobody's work is lost by it.

    Args:
        path: the file; None: none is asked for. A device or a pipe, such as `/dev/null`, is written to as it is.
        verb: whose report it will be; an earlier one of the same verb is replaced. None: nothing is replaced.

    Raises:
        UsageError: it cannot be written, or is there already.
    """
    if path is None:
        return
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return
        parent = Path(os.path.realpath(path)).parent  # a link is written through
    except OSError as error:
        raise UsageError(f"{str(path)[:80]} cannot be written ({error.strerror}); choose another --out") from error
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file with --out")
    if not parent.is_dir():
        missing = parent if path.is_symlink() else path.parent
        raise UsageError(f"{path} cannot be written: there is no folder {missing}; make it first")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission in {parent}; choose another --out")
    if path.exists() and not _is_report(path, verb):
        what = f"and is no report of manta {verb}" if verb else "already"
        raise UsageError(f"{path} exists {what}, and would be overwritten; choose another --out, or move it elsewhere")


def claim_folder(path: Path, verb: str) -> None:
    """Make sure that a verb's JSON and page can be written into a folder, `VERB.json` and `VERB.html`.

    Raises:
        UsageError: it cannot be written, or one of them is there and is not that verb's.
    """
    try:
        there = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        raise UsageError(f"{str(path)[:80]} cannot be written ({error.strerror}); choose another --out") from error
    if not there.is_dir():
        raise UsageError(f"{path} is to be a folder, and {there} is a file; choose another --out")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission in {there}; choose another --out")
    if not path.exists():
        return
    report, page = path / f"{verb}.json", path / f"{verb}.html"
    claim_file(report, verb)
    if page.is_dir() or (page.exists() and not report.exists()):
        claim_file(page, verb)


def marked(verb: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A verb's result with the mark by which its file is known as a report that may be replaced."""
    return {MARK: f"manta {verb}", **result}


def _is_report(path: Path, verb: str | None) -> bool:
    """Whether a file is a report that the verb wrote."""
    if verb is None:
        return False
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get(MARK) == f"manta {verb}"
