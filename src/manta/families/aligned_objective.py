"""What an aligned model is taught: its texts through all their alignments, parts of which it is given."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.aligned import AlignmentConfig, alignment_nats, best_alignment, clamped, least_slots
from manta.families.aligned_model import AlignedModel
from manta.families.autoregressive import NextToken
from manta.families.batching import padded_width
from manta.families.objectives import ObjectiveConfig, lay_out
from manta.operators.cross_attention import ProjectedMemory
from manta.step import deciding
from manta.text import CONSENSUS, MASK, NULL, Batch
from manta.types import Loss

LENGTH_WEIGHT = 0.1
"""Weight of the length's nats beside those of the words."""


@dataclass(frozen=True)
class SlotCanvas:
    """Texts laid out over slots for training."""

    labels: Int64[Tensor, "b n"]
    """Labels where they are given, anything elsewhere."""
    known: Bool[Tensor, "b n"]
    """True where a label is given."""
    counts: Int64[Tensor, "b"]
    """Slots of each row."""

    @property
    def mask(self) -> Bool[Tensor, "b n"]:
        """True on each row's canvas."""
        return torch.arange(self.labels.shape[1], device=self.labels.device) < self.counts[:, None]

    @property
    def words_given(self) -> Int64[Tensor, "b"]:
        """Words of which a slot is given; several slots that stand side by side may say one word."""
        word = (self.labels != NULL) & self.mask
        begins = word & (self.labels != F.pad(self.labels, (1, 0), value=NULL)[:, :-1])
        hits = torch.zeros(len(word), word.shape[1] + 1, dtype=torch.long, device=word.device)
        hits.scatter_add_(1, begins.cumsum(1), (word & self.known).long())
        return (hits > 0).sum(1)


class AlignmentMatching:
    """What an aligned model is taught: its texts through all alignments, and their lengths.

    ``nats = −log Σ_a Π_i p(a_i | given labels, prompt)``,  a over the alignments that say the text

    A model that reads both ways is told the next word beside it, ``−log Π_i p(w_i | w_<i, prompt)``, of the same texts,
    and of those that slots do not learn.

    Args:
        layout: shares of rows with a blank to fill, and its size.
        config: what is shown of alignments.
        reveal: whether anything of them is.
    """

    def __init__(self, layout: ObjectiveConfig, config: AlignmentConfig, *, reveal: bool) -> None:
        self.layout, self.config, self.reveal = layout, config, reveal

    def __call__(self, model: AlignedModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a word that is not given), given (share of slots), length (nats), and causal (nats a
        word left to right) of a model that reads both ways."""
        memory, next_word, share = model.prompt_memory(batch.prompt, batch.prompt_lengths, batch.tag), None, 1.0
        told_next = 0
        if model.config.causal:  # before the slots, whose call is the last: the one that an imitation compares
            next_word, told_next = NextToken.nats(model.reading(), batch, memory)
        if (
            model.config.styles and self.config.slots_learn == "all"
        ):  # they are asked for as answers, whoever wrote them
            memory = model.prompt_memory(batch.prompt, batch.prompt_lengths)
        if self.config.slots_learn == "answers":
            rows, share = answered(batch)
            batch, memory = batch.rows(rows), memory.rows(rows)
        projected = model.trunk.project(memory.states, memory.mask)
        canvas = self.lay_out(model, batch, generator)
        if self.reveal and float(torch.rand((), generator=deciding(generator))) < self.config.reveal_share:
            canvas = self.revealed(model, batch, canvas, projected, generator)
        log_chances = self._log_chances(model, canvas, projected)
        nats = alignment_nats(log_chances, canvas.counts, batch.text, batch.text_lengths, blank=NULL)
        asked = (batch.text_lengths - canvas.words_given).clamp_min(0).sum().clamp_min(1)
        told = nats.sum() / asked
        length = F.cross_entropy(model.length_logits(memory), batch.text_lengths)
        given = (canvas.known & canvas.mask).sum() / canvas.mask.sum()
        parts = {"nats": told.detach(), "given": given.detach(), "length": length.detach()} if share else {}
        total = share * (told + LENGTH_WEIGHT * length)
        if next_word is not None:
            total, parts["causal"] = total + self.config.causal_weight * next_word, next_word.detach()
        return Loss(total, parts, int(asked) if share else told_next)

    def lay_out(self, model: AlignedModel, batch: Batch, generator: torch.Generator) -> SlotCanvas:
        """Open canvases of drawn sizes; in some rows a text with a blank to fill, of which all else is given.

        text        w w w w                       4 words
        open        . . . . . . . . .             8 slots, more or less
        with blank  w b [. . . .] w b b b         2 words, 2 places to fill, 1 word, the closing null
        """
        shape = model.config
        texts = lay_out(batch, 1, self.layout, generator, max_cells=model.max_words)
        filled = texts.hole.any(1)
        draw = float(torch.rand((), generator=generator))  # of the whole batch, which spares padding
        room = self.config.least_room + draw * (self.config.most_room - self.config.least_room)
        counts = (batch.text_lengths * shape.slots_per_word * room).ceil().long()
        counts = counts.clamp(max=model.max_slots).maximum(least_slots(batch.text, batch.text_lengths)).clamp_min(1)
        counts = torch.where(filled, shape.slots_per_word * texts.cells, counts)
        labels, hole = spread(texts.tokens, texts.hole, shape.slots_per_word)
        width = padded_width(int(counts.max()))
        labels = F.pad(labels, (0, max(0, width - labels.shape[1])), value=NULL)[:, :width]
        hole = F.pad(hole, (0, max(0, width - hole.shape[1])))[:, :width]
        return SlotCanvas(labels, filled[:, None] & ~hole, counts)

    @torch.no_grad()
    def revealed(
        self,
        model: AlignedModel,
        batch: Batch,
        canvas: SlotCanvas,
        projected: tuple[ProjectedMemory, ...],
        generator: torch.Generator,
    ) -> SlotCanvas:
        """Give some labels of the model's own best alignments, beside those that are given already."""
        log_chances = self._log_chances(model, canvas, projected)
        best = best_alignment(log_chances, canvas.counts, batch.text, batch.text_lengths, blank=NULL)
        wrong = ((log_chances.argmax(-1) != best) & canvas.mask).sum(1) / canvas.counts
        draws = torch.rand(2, len(best), generator=generator).to(best.device)
        share = torch.where(draws[0] < 0.5, self.config.glance * wrong, draws[1])
        known = torch.rand(best.shape, generator=generator).to(best.device) < share[:, None]
        return replace(canvas, labels=best, known=canvas.known | (known & canvas.mask))

    @staticmethod
    def _log_chances(model: AlignedModel, canvas: SlotCanvas, projected: tuple[ProjectedMemory, ...]) -> Tensor:
        """Of every label in every slot, certain where it is given."""
        seen = torch.where(canvas.known, canvas.labels, MASK).masked_fill(~canvas.mask, NULL)
        log_chances = model(seen, canvas.mask, projected).float().log_softmax(-1)
        return clamped(log_chances, canvas.labels, canvas.known)


def answered(batch: Batch) -> tuple[Int64[Tensor, "k"], float]:
    """Rows of a batch that are a teacher's answers, and what they count for: of none the first row, for nothing, since
    every process of a run calls its nets as often as the others.
    """
    rows = (batch.tag == CONSENSUS).nonzero()[:, 0]
    return (rows, 1.0) if len(rows) else (torch.zeros_like(batch.tag[:1]), 0.0)


def spread(
    tokens: Int64[Tensor, "b n"], open_: Bool[Tensor, "b n"], slots: int
) -> tuple[Int64[Tensor, "b n*{slots}"], Bool[Tensor, "b n*{slots}"]]:
    """Lay tokens out over slots: a given one is followed by blanks, an open one is all open.

    Args:
        tokens: given words.
        open_: True where none is given.
        slots: for each token.
    """
    labels = torch.cat([tokens[..., None], tokens.new_full((*tokens.shape, slots - 1), NULL)], -1)
    return labels.flatten(1), open_.repeat_interleave(slots, 1)
