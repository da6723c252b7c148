"""What a masked-diffusion model is taught, and how likely it holds a text."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.families.batching import padded_width
from manta.families.masked_model import MaskedModel
from manta.families.objectives import ObjectiveConfig, lay_out, length_cost, read_prompt
from manta.families.scales import by_class, covered
from manta.families.thinking import Thought, Told
from manta.masked import LikelihoodBound, MaskedObjectiveConfig, Rates, likelihood_bound, masked_cross_entropy
from manta.masked.elastic import Layout, merged
from manta.operators.cross_attention import ProjectedMemory
from manta.runtime import check_likelihood
from manta.step import deciding
from manta.text import MASK, NULL, Batch
from manta.types import Loss

EARLIER = 0.5
"""Share of the steps in which a model that thinks plays an earlier call first."""
REVEALED = 1 / 3
"""Share of the rows in which a model that doubts looks for its own slips among right words."""
WHOLE = 0.5
"""Share of the rows whose hidden words are all there when they are doubted, as at the end of a text."""
MOST_JOINED = 0.9
"""Largest probability with which a hidden word shares its place with the one before it."""


class MaskedMatching:
    """What a masked model is taught: hidden words, its texts' lengths, and to think where its shape says so.

    A model that thinks learns in half of the steps as in writing: an earlier call, with as many words hidden or more,
    hands its thought to the one that is trained. Soft words are handed as they are (as in self-conditioning: Chen et
    al., arXiv 2208.04202); slots of thought learn through both calls. A model that doubts sees its own words in the
    place of some hidden ones, and tells which are right (Kim et al., PRISM, arXiv 2510.01384).

    Args:
        layout: how texts are laid out and prompts dropped; what concerns a state is not used.
        config: how words are hidden and weighed.
        rates: which shares of words are hidden, where that is found on the way.
    """

    def __init__(self, layout: ObjectiveConfig, config: MaskedObjectiveConfig, rates: Rates | None = None) -> None:
        self.layout, self.config, self.rates = layout, config, rates

    def __call__(self, model: MaskedModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a hidden word), supervised (share of words), length and doubt (nats)."""
        canvas = lay_out(batch, 1, self.layout, generator, max_cells=model.max_cells)
        memory = read_prompt(model, batch, self.layout, generator)
        blank = canvas.hole.any(1, keepdim=True)
        times = self.config.times
        mask = canvas.mask.repeat(times, 1)
        projected = model.projected(model.trunk, memory.repeat(times))
        kept = (blank & ~canvas.hole).repeat(times, 1)
        calls = _Calls(model, mask & ~kept, mask, projected, generator)
        loss = masked_cross_entropy(
            calls,
            canvas.tokens,
            canvas.mask,
            mask_id=MASK,
            generator=generator,
            config=self.config,
            keep=blank & ~canvas.hole,
            layout=self._layout(model, mask, generator),
            asked=lambda shown: model(shown, mask, projected),
            rates=self.rates,
        )
        length = length_cost(model, memory, canvas)
        total, parts = loss.total + 0.1 * length, {**loss.parts, "length": length.detach()}
        if model.thinking.config.doubts:
            doubt = calls.doubt(canvas.tokens.repeat(times, 1))
            total, parts = total + doubt, {**parts, "doubt": doubt.detach()}
        return Loss(total, parts, loss.count)

    def _layout(
        self, model: MaskedModel, mask: Bool[Tensor, "b n"], generator: torch.Generator
    ) -> Callable[[Tensor, Tensor], Layout] | None:
        """How rows with hidden words are laid out anew; None: they stay."""
        if model.config.elastic:
            return partial(self._elastic, model, mask, generator)
        return partial(self._classed, model, generator) if model.config.classes else None

    def _classed(
        self,
        model: MaskedModel,
        generator: torch.Generator,
        tokens: Int64[Tensor, "b n"],
        hidden: Bool[Tensor, "b n"],
    ) -> Layout:
        """Half of the rows with the classes of some hidden words."""
        return Layout(covered(model, tokens, hidden, by_class(model, tokens, generator)), tokens, hidden)

    def _elastic(
        self,
        model: MaskedModel,
        mask: Bool[Tensor, "b n"],
        generator: torch.Generator,
        tokens: Int64[Tensor, "b n"],
        hidden: Bool[Tensor, "b n"],
    ) -> Layout:
        """Half of the rows with places that stand for several words or none, the others as they are."""
        draws = torch.rand((2, len(tokens)), generator=generator).to(tokens.device)
        share = torch.where(draws[0] < 0.5, MOST_JOINED * draws[1], 0.0)
        ids = {"mask_id": MASK, "grow_id": model.config.vocab_size, "end_id": NULL}
        return merged(tokens, hidden, mask, share, generator, most=model.max_cells, **ids)


class _Calls:
    """The calls of a training step.

    Args:
        model: which thinks, or not.
        free: words that may be hidden.
        mask: True on each row's canvas.
        memory: the prompts.
        generator: of all draws.
    """

    def __init__(
        self,
        model: MaskedModel,
        free: Bool[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: tuple[ProjectedMemory, ...],
        generator: torch.Generator,
    ) -> None:
        self.model, self.free, self.mask, self.memory, self.generator = model, free, mask, memory, generator
        self.shown: Tensor | None = None
        self.told: Told | None = None

    def __call__(self, shown: Int64[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        """Logits of a canvas with hidden words, in some steps after an earlier call."""
        if self.model.config.elastic:
            return self.model.told(shown, self.memory).classes()
        thought = None
        if self.model.thinking.config.carries and self._earlier_comes():
            draws = self._drawn((2, len(shown)))
            more = torch.where(draws[0] < 0.5, draws[1], 0.0)  # half of the rows: the same canvas once more
            hidden = self.free & (self._drawn(shown.shape) < more[:, None])
            thought = self._earlier(shown.masked_fill(hidden, MASK))
        self.shown, self.told = shown, self.model.think(shown, self.mask, self.memory, thought)
        return self.told.logits

    def doubt(self, tokens: Int64[Tensor, "b n"]) -> Tensor:
        """Mean nats of whether the model's own words are right, in the place of some hidden words.

            write some hidden words, all at once                                half of the rows greedily, half drawn
            a third of the rows:  show the right words in some other places     a slip among right words
            the others:           a further call writes more, or all the rest   words that were written upon a slip

        Args:
            tokens: the right words.
        """
        assert self.shown is not None and self.told is not None, "hidden words come first"
        draws = self._drawn((5, len(tokens)))
        greedy, reveals = draws[0] < 0.5, draws[1] < REVEALED
        rest = torch.where(draws[2] < WHOLE, 1.0, draws[3])

        def hidden(canvas: Tensor, share: Tensor) -> Tensor:
            return (canvas == MASK) & self.mask & (self._drawn(tokens.shape) < share[:, None])

        thought = self.told.thought()
        own = hidden(self.shown, draws[4])
        canvas = torch.where(own, self._words(thought, greedy), self.shown)
        with torch.no_grad():
            thought = self._think(canvas, thought).thought()
        more = hidden(canvas, rest)
        canvas = torch.where(more, torch.where(reveals[:, None], tokens, self._words(thought, greedy)), canvas)
        own = own | (more & ~reveals[:, None])
        told = self._think(canvas, thought)
        assert told.right is not None, "the model has a head that doubts"
        right = (canvas == tokens)[own].float()
        return F.binary_cross_entropy_with_logits(told.right[own], right, reduction="sum") / max(1, len(right))

    def _think(self, canvas: Int64[Tensor, "b n"], thought: Thought) -> Told:
        """A further call, which is handed what the shape says; nothing learns by what is handed here."""
        handed = Thought(thought.chances, thought.slots.detach()) if self.model.thinking.config.carries else None
        return self.model.think(canvas, self.mask, self.memory, handed)

    def _words(self, thought: Thought, greedy: Bool[Tensor, "b"]) -> Int64[Tensor, "b n"]:
        """The model's words for every place, the likeliest or drawn."""
        noise = self._drawn(thought.chances.shape).clamp(1e-9, 1 - 1e-7).log().neg().log().neg()
        return (thought.chances.log() + noise.masked_fill(greedy[:, None, None], 0.0)).argmax(-1)

    def _earlier(self, shown: Int64[Tensor, "b n"]) -> Thought:
        """The thought of a call before; gradients are kept only where slots learn by them."""
        learns = torch.is_grad_enabled() and self.model.thinking.config.slots > 0
        with torch.set_grad_enabled(learns):
            return self.model.think(shown, self.mask, self.memory).thought()

    def _earlier_comes(self) -> bool:
        """Whether an earlier call is played."""
        return torch.rand((), generator=deciding(self.generator)).item() < EARLIER

    def _drawn(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.mask.device)


def bound(
    model: MaskedModel,
    batch: Batch,
    generators: Sequence[torch.Generator],
    *,
    num_samples: int = 128,
    known: Int64[Tensor, "b"] | None = None,
) -> LikelihoodBound:
    """Upper bound of −log p of each text given prompt and length, the closing null included.

    Args:
        model: the net.
        batch: the texts.
        generators: one a text.
        num_samples: masks a text.
        known: tokens of each text that are never hidden, from its first on; None: none are.
    """
    place = torch.arange(padded_width(int(batch.text_lengths.max()) + 1), device=batch.text.device)
    lengths = batch.text_lengths[:, None]
    text = F.pad(batch.text, (0, max(0, len(place) - batch.text.shape[1])), value=NULL)[:, : len(place)]
    tokens, mask = text.masked_fill(place >= lengths, NULL), place <= lengths
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag, task=batch.task)
    projected = model.projected(model.trunk, memory)
    found = likelihood_bound(
        lambda hidden: model(hidden, mask, projected),
        tokens,
        mask if known is None else mask & (place >= known.to(place.device)[:, None]),
        mask_id=MASK,
        generators=generators,
        width=model.max_cells,
        num_samples=num_samples,
    )
    check_likelihood(found.nats)
    return found


@torch.no_grad()
def length_nats(model: MaskedModel, batch: Batch) -> Float[Tensor, "b"]:
    """−log p(length | prompt) of each text, a part of the bound on the text, since a canvas has a length."""
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag, task=batch.task)
    chance = model.length_logits(memory).log_softmax(-1)
    # A text of n tokens is laid out on n + 1 places, the last of which closes it.
    return -chance.gather(1, batch.text_lengths[:, None])[:, 0]
