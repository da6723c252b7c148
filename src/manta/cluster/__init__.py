"""Work that many processes share, on one machine or on several, by Ray: texts by the million, and their figures."""

from manta.cluster.local import connected, require_ray
from manta.cluster.scoring import spreading
from manta.cluster.writing import ManyTexts, Outcome, Progress, silent, write_many

__all__ = [
    "ManyTexts",
    "Outcome",
    "Progress",
    "connected",
    "require_ray",
    "silent",
    "spreading",
    "write_many",
]
