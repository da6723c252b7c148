"""The slots of a row of alignments are settled in a set number of network calls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.aligned.alignment import best_alignment, clamped
from manta.fluency import Fluency, likeliest_texts

Reader = Callable[[Float[Tensor, "b n v"], Int64[Tensor, "b n"], Bool[Tensor, "b n"]], Int64[Tensor, "b n"]]
"""A label for every slot, from its logits, the labels that stand, and where none does yet."""


@dataclass
class Slots:
    """The slots of a batch after a network call."""

    labels: Int64[Tensor, "b n"]
    """What every slot says by now, settled or not; those that stand may be changed before the next call."""
    open: Bool[Tensor, "b n"]
    """Slots that are asked for again."""
    confidence: Float[Tensor, "b n"]
    """Probability of each label when it was last told; 1 where it was given."""
    calls: int
    """Network calls so far."""
    calls_of: Int64[Tensor, "b"]
    """Network calls of each row until its last slot was settled."""

    def standing(self, open_id: int) -> Int64[Tensor, "b n"]:
        """The labels that are settled, `open_id` elsewhere."""
        return self.labels.masked_fill(self.open, open_id)


@torch.no_grad()
def settle(
    denoiser: Callable[[Int64[Tensor, "b n"]], Float[Tensor, "b n v"]],
    labels: Int64[Tensor, "b n"],
    open_: Bool[Tensor, "b n"],
    num_steps: int,
    *,
    open_id: int,
    reader: Reader,
) -> Iterator[Slots]:
    """Settle one of every `num_steps` neighbouring slots a call, the surest first; yields the slots after each call.

        divide the open slots into groups of `num_steps` neighbours
        repeat `num_steps` times:
            logits ← denoiser(labels, `open_id` where a slot is open)
            in each group: settle the open slot whose label is surest

    So the words of a neighbourhood are told one after the other, each in sight of those before, and all neighbourhoods
    at once. One call tells all slots independently of each other; with as many calls as slots there is one a call.

    Args:
        denoiser: logits of every slot.
        labels: what is given; anything where a slot is open.
        open_: True where the model tells a label.
        num_steps: calls, at least 1.
        open_id: stands for an open slot.
        reader: chooses labels; what it says of slots that are settled is not asked.

    Source: settling within blocks: Saharia et al., "Imputer", arXiv 2004.07437.
    """
    group = (open_.cumsum(1) - 1).clamp_min(0) // num_steps
    place = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    confidence = torch.ones(labels.shape, dtype=torch.float64, device=labels.device)
    calls_of = open_.sum(1).clamp_max(num_steps).clamp_min(1)
    for call in range(1, max(1, int(calls_of.max())) + 1):
        logits = denoiser(labels.masked_fill(open_, open_id))
        chosen = reader(logits, labels, open_)
        chance = logits.double().softmax(-1).gather(2, chosen[..., None])[..., 0]
        labels = torch.where(open_, chosen, labels)
        confidence = torch.where(open_, chance, confidence)
        sure = chance.masked_fill(~open_, -1.0)
        surest = torch.full_like(sure, -1.0).scatter_reduce(1, group, sure, "amax").gather(1, group)
        rival = open_ & (sure == surest)
        last = torch.full_like(place, labels.shape[1])
        first = last.scatter_reduce(1, group, torch.where(rival, place, last), "amin").gather(1, group)
        open_ = open_ & (place != first)
        slots = Slots(labels, open_, confidence, call, calls_of.clamp_max(call))
        yield slots
        labels = slots.labels


def agreed(
    logits: Float[Tensor, "b n v"],
    labels: Int64[Tensor, "b n"],
    open_: Bool[Tensor, "b n"],
    counts: Int64[Tensor, "b"],
    *,
    blank: int,
    fluency: Fluency,
) -> Int64[Tensor, "b n"]:
    """A `Reader`'s answer: the likeliest alignment of the text that network and counts agree on, see `manta.fluency`.

    Args:
        logits: of every slot.
        labels: that stand.
        open_: True where none does.
        counts: slots of each row.
        blank: the label that says nothing.
        fluency: what is added for words that go together.
    """
    log_chances = clamped(logits.log_softmax(-1), labels, ~open_)
    texts = likeliest_texts(log_chances, counts.tolist(), blank=blank, fluency=fluency)
    words = torch.nn.utils.rnn.pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], True)
    lengths = torch.tensor([len(text) for text in texts], device=logits.device)
    return best_alignment(log_chances, counts, words.to(logits.device), lengths, blank=blank)
