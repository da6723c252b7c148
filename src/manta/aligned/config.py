"""What is shown of alignments while they are learned."""

from dataclasses import dataclass
from typing import Literal

from manta.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What an aligned model is shown of its alignments while it learns."""

    reveal_share: float = 0.5
    """Share of the batches, after the first quarter of the time, in which a part of the model's own best alignment is
    given."""
    glance: float = 0.4
    """In half of those rows the share given is this times the share of slots that the model has wrong; in the others it
    is uniform."""
    least_room: float = 0.7
    """Smallest canvas of a batch, as a share of `slots_per_word` slots a word; never less than the text needs."""
    most_room: float = 1.2
    """Largest canvas, as the same share."""
    slots_learn: Literal["all", "answers"] | None = None
    """Which texts slots learn: `all`, or of a model that reads both ways a teacher's `answers` alone, while its
    left-to-right reading learns human texts, too. None: the answers, where such a model has any. Slots need one text
    for a prompt; a reading that had seen answers alone gave human texts 4.8 nats a token where its teacher gave 1.3."""
    causal_weight: float = 1.0
    """Weight of a word's nats left to right beside those through alignments, of a model that reads both ways."""

    def __post_init__(self) -> None:
        for name in ("reveal_share", "glance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"alignment.{name} should lie in [0, 1], received {getattr(self, name)}")
        if self.causal_weight < 0:
            raise ConfigError(f"alignment.causal_weight should be at least 0, received {self.causal_weight}")
        if not 0 < self.least_room <= self.most_room:
            raise ConfigError(
                f"alignment.least_room should be above 0 and at most most_room, received {self.least_room} and "
                f"{self.most_room}"
            )
