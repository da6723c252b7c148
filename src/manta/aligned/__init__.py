"""Words read through monotone alignments: what an alignment is, what it costs, and how its slots are settled."""

from manta.aligned.alignment import alignment_nats, best_alignment, clamped, collapse, least_slots
from manta.aligned.config import AlignmentConfig
from manta.aligned.decode import Slots, agreed, settle

__all__ = [
    "AlignmentConfig",
    "Slots",
    "agreed",
    "alignment_nats",
    "best_alignment",
    "clamped",
    "collapse",
    "least_slots",
    "settle",
]
