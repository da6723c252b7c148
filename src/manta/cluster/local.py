"""Ray, as far as it is needed here: a cluster of this machine, quiet and small, or one that runs already."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from manta.errors import UsageError
from manta.signals import interrupt, on_signals

STORE: Final = 128 << 20
"""Bytes of shared memory of a local cluster: only the numbers of parts and their outcomes pass through it."""
ADDRESS: Final = "RAY_ADDRESS"
"""Environment variable with the address of a cluster that runs."""

QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what it tells of workers that died, on stdout
}
"""Environment that Ray reads when it is imported; whoever wants it otherwise has set it."""


def require_ray() -> Any:
    """The package `ray`, with its data sets.

    Raises:
        UsageError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(
            f"several processes need Ray ({' '.join(str(error).split())}); install it with: pip install 'manta[ray]'"
        ) from error
    return ray


@contextmanager
def connected(address: str | None = None, *, workers: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster for a while; one that this process is connected to already is used and stays.

    Args:
        address: of a cluster that runs, `auto` or HOST:PORT; None: what RAY_ADDRESS says, else this machine alone.
        workers: processes of a cluster of this machine; None: as many as it has cores.

    Raises:
        UsageError: Ray is not installed, or no cluster answers there.
    """
    ray = require_ray()
    _quieten(ray)
    if ray.is_initialized():
        yield ray
        return
    where = address or os.environ.get(ADDRESS) or "local"
    # A size may only be given for a cluster that begins here.
    own = {"num_cpus": workers or cores(), "object_store_memory": STORE} if where == "local" else {}
    try:
        with _muted():
            ray.init(where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"no Ray cluster at {where} ({reason}); see --address, or leave it out") from error
    try:
        with on_signals(interrupt, ("SIGTERM", "SIGHUP")):  # in the place of Ray's own handler, which leaves at once
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing on stderr for a while: Ray's core says there that it was told to say nothing."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def cores() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quieten(ray: Any) -> None:
    """No bars and no lines of Ray's own: whoever calls shows what is done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # none: a part may take its time
    for name in ("ray.data", "ray._private", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised, too
