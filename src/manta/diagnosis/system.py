"""What every family is to a diagnosis: a text in the making that can be disturbed, continued, put back and steered.

Time is the share of the way: of the network calls (Manta-LM: flow time), of a masked, aligned or block-causal text's
own calls, of an autoregressive text's tokens. Everything is drawn for each request alone on a canvas of fixed size, so
that no figure depends on the batch a prompt is measured in.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.control import corrupt
from manta.families.batching import padded_draws
from manta.families.events import GenerateOptions, Request
from manta.families.observer import Beginning
from manta.families.tracing import Guide, Trace
from manta.nets.integers import count_parameters
from manta.runtime import MAX_SEED, make_generator
from manta.text import MASK, NULL

Commit = Callable[[Tensor], Tensor]
"""`commit(logits) -> weights`, one of `manta.control.chain`."""


class System(ABC):
    """A model on a batch of requests.

    Args:
        lm: the model.
        requests: the prompts with their seeds.
        num_steps: network calls of a text.
        options: the style, and a masked model's decoder.
        words: of a flow, the words that the policy sees at each time: `writing`, those that had settled by then, or
            `masked`, none.
    """

    family: str
    trace: Trace
    grows: bool = False
    """A call speaks of a text up to the place it is written to, and not of what follows."""

    def __init__(
        self, lm: Any, requests: Sequence[Request], num_steps: int, options: GenerateOptions, words: str = "writing"
    ) -> None:
        self.lm, self.requests, self.num_steps, self.options = lm, list(requests), num_steps, options
        self.words = words
        self.vocab_size: int = lm.model.embedding.num_embeddings
        self.beginning: Beginning = lm.begin(self.requests, options)
        self.trace = self.write(self.beginning)

    @abstractmethod
    def write(self, beginning: Beginning, *, guide: Guide | None = None) -> Trace:
        """Write from a beginning, guided or not."""

    @abstractmethod
    def lengths(self) -> list[int]:
        """Steps of each request's own way."""

    @abstractmethod
    def standing(self, t: float) -> Int64[Tensor, "b n"]:
        """The words that stood at a time, the mask token elsewhere."""

    @abstractmethod
    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """The text that comes of it when other words stand at that time, all else being as it was."""

    @abstractmethod
    def rewritten(self, tokens: Int64[Tensor, "b n"], t: float) -> Int64[Tensor, "b n"]:
        """The text that comes of a text put back to a time, and written on from there."""

    def facts(self) -> dict[str, Any]:
        """What a reader should know of the model."""
        facts: dict[str, Any] = {"parameters": count_parameters(self.lm.model)}
        facts["calls"] = round(sum(self.lengths()) / len(self.requests), 1)
        return facts

    @property
    def places(self) -> int:
        """Places of the largest canvas."""
        return self.lm.model.config.max_text + 2

    @property
    def mask(self) -> Bool[Tensor, "b n"]:
        """True at the positions of each text."""
        return self.trace.mask

    @property
    def width(self) -> int:
        """Places that the longest text takes in a chain of commitments."""
        return self.mask.shape[1]

    @property
    def tokens(self) -> Int64[Tensor, "b n"]:
        """The texts."""
        return self.trace.tokens

    @property
    def seeds(self) -> list[int]:
        """The seed of each request."""
        return [request.seed for request in self.requests]

    def texts(self, tokens: Int64[Tensor, "b n"]) -> list[str]:
        """Tokens as texts; they end where one that is written on ends."""
        texts, end = [], getattr(self.lm.model, "end", None)
        for row in tokens.tolist():
            row = row[: row.index(end)] if end in row else row
            texts.append(self.lm.tokenizer.decode([token for token in row if token not in (NULL, MASK)]).strip())
        return texts

    def draws(self, purpose: int, shape: tuple[int, ...], width: int, kind: str = "normal") -> Float[Tensor, "b *rest"]:
        """Random numbers of each request, drawn for a canvas of fixed size and cut, or padded, to a width.

        Args:
            purpose: tells streams apart.
            shape: of the largest canvas; its first axis is cut.
            width: of the first axis.
            kind: normal or uniform.
        """
        draw = torch.randn if kind == "normal" else torch.rand
        rows = torch.stack([draw(shape, generator=self.generator(seed, purpose)) for seed in self.seeds])
        return padded_draws(rows, width).to(self.tokens.device)

    @staticmethod
    def generator(seed: int, purpose: int) -> torch.Generator:
        """The generator of a request's draws of one purpose."""
        return make_generator((seed * 7919 + purpose) % MAX_SEED)

    def corrupted(
        self, tokens: Int64[Tensor, "b n"], share: float, mask: Bool[Tensor, "b n"], purpose: int
    ) -> Int64[Tensor, "b n"]:
        """Exchange a share of each row's masked words for others of the vocabulary; one at least, if there is any.

        Replacements are tokens that were learned, not single bytes, where the vocabulary has any.
        """
        bytes_end = 4 + 256
        first = bytes_end if self.lm.tokenizer.symbols is None and self.vocab_size > bytes_end + 16 else 4
        choices = torch.arange(first, self.vocab_size)
        rows = []
        for row, (words, where, seed) in enumerate(zip(tokens.cpu(), mask.cpu(), self.seeds, strict=True)):
            width, count = int(self.mask[row].sum()), int(where.sum())
            wanted = max(share, 1 / count) if count else 0.0
            changed = corrupt(words[None, :width], wanted, choices, self.generator(seed, purpose), where[None, :width])
            rows.append(torch.cat([changed[0], words[width:]]))
        return torch.stack(rows).to(tokens.device)

    def hidden(self, t: float) -> Bool[Tensor, "b n"]:
        """Positions whose word a text put back to time t loses: each with probability 1 - t."""
        uniform = self.draws(11, (self.places + 62,), self.tokens.shape[1], "uniform")
        return (uniform >= t) & self.mask
