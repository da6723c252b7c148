"""Words of a canvas that is held to an automaton: together they always are a part of a text that it accepts.

A masked model tells a distribution of each place by itself. The automaton couples them: of all texts that it accepts
and that keep the words which stand, the likeliest is proposed, or one is drawn. Whatever a policy commits of it, the
rest of that text still completes the canvas, so that a way to the end is never lost.

Source: the likeliest text by dynamic programming over places and states, as in Suresh et al., "DINGO: Constrained
    Inference for Diffusion LLMs", arXiv 2505.23061.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import UsageError
from manta.masked.sampling import WordSampler
from manta.runtime import check_logits
from manta.text.automaton import TokenAutomaton

LEAST = -1e30
"""Logarithm of what cannot be."""


@dataclass(frozen=True)
class Held:
    """What holds one canvas.

    Args:
        automaton: of the text.
        end: token that fills a canvas behind its text, or, with `gaps`, stands for no word anywhere.
        gaps: places may stay empty between the words: a text to fill.
    """

    automaton: TokenAutomaton
    end: int
    gaps: bool = False

    @cached_property
    def edges(self) -> "Edges":
        """The automaton's, and those of the end.

        Of a free text they lead from where it may end to a last state. Of a text to fill there are two of each state:
        behind an end nothing but ends is written in the same blank, until a given word follows it.
        """
        own, size = self.automaton, len(self.automaton.accepting)
        states = torch.arange(size)
        if not self.gaps:
            sources = torch.cat([states[own.accepting], torch.tensor([size])])
            final = torch.cat([own.accepting, torch.tensor([True])])
            return Edges.of(final, (own.sources, own.tokens, own.targets), (sources, self.end, size))
        return Edges.of(
            own.accepting.repeat(2),
            (own.sources, own.tokens, own.targets),
            (states.repeat(2) + torch.tensor([0, size]).repeat_interleave(size), self.end, states.repeat(2) + size),
            given=(own.sources + size, own.tokens, own.targets),
        )


Part = tuple[Tensor, Tensor | int, Tensor | int]
"""Sources, tokens and targets of some edges; a number stands for all of them."""


@dataclass(frozen=True)
class Edges:
    """What leads from state to state, by which token."""

    sources: Int64[Tensor, "e"]
    tokens: Int64[Tensor, "e"]
    targets: Int64[Tensor, "e"]
    given: Bool[Tensor, "e"]
    """True for what a given word alone may take."""
    final: Bool[Tensor, "s"]
    """States in which a canvas may end."""

    @classmethod
    def of(cls, final: Bool[Tensor, "s"], *parts: Part, given: Part | None = None) -> "Edges":
        """Some edges, one part behind the other."""
        every = (*parts, given) if given is not None else parts
        sizes = [len(part[0]) for part in every]
        columns = [
            torch.cat([torch.as_tensor(part[k]).expand(size) for part, size in zip(every, sizes, strict=True)])
            for k in range(3)
        ]
        alone = torch.zeros(sum(sizes), dtype=torch.bool)
        if given is not None:
            alone[-sizes[-1] :] = True
        return cls(columns[0], columns[1], columns[2], alone, final)


class StructuredSampler(WordSampler):
    """Proposes, for every row, the words of one text that its automaton accepts; confidence by the posterior.

    The confidence in a word is its probability among all texts that are accepted and keep what stands, so that a word
    that the structure forces is certain.

    Args:
        held: what holds each row.
        mask: True on each row's canvas.
        mask_id: the mask token.
        how: arguments of `WordSampler`.
    """

    def __init__(self, held: Sequence[Held], mask: Bool[Tensor, "b n"], mask_id: int, **how: Any) -> None:
        super().__init__(**how)
        self.sizes, self.mask_id = mask.sum(1).tolist(), mask_id
        self.rows = [(each.edges, each.automaton.start) for each in held]
        self._given: Bool[Tensor, "b w"] | None = None
        """Where words stood before the first call."""

    def __call__(
        self, logits: Float[Tensor, "b n v"], start: int = 0, tokens: Int64[Tensor, "b w"] | None = None
    ) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
        """See `WordSampler`; the logits are of whole canvases.

        Raises:
            UsageError: for a part of a canvas, or words that stand and are a part of no text that is accepted.
        """
        if tokens is None or logits.shape[1] != tokens.shape[1]:
            raise UsageError("a text that is held to a pattern is looked at as a whole; leave `cache` out")
        self.calls += 1
        check_logits(logits, self.calls)
        scaled = logits.double() / (self.temperature or 1.0)
        chances = (scaled - scaled.logsumexp(-1, keepdim=True)).cpu()
        noise = None if self.temperature == 0 else self.uniform((self.width,))
        words, sure = torch.zeros(tokens.shape, dtype=torch.long), torch.zeros(tokens.shape, dtype=torch.double)
        if self._given is None:
            self._given = tokens.cpu() != self.mask_id
        for row, (edges, first) in enumerate(self.rows):
            n = self.sizes[row]
            told = _restricted(chances[row, :n], tokens[row, :n].cpu(), self.mask_id)
            draws = None if noise is None else noise[row, :n]
            words[row, :n], sure[row, :n] = _path(told, edges, self._given[row, :n], first, draws, self.confidence)
        return words.to(logits.device), sure.to(logits.device)


def completes(held: Held, given: Int64[Tensor, "n"], mask_id: int) -> bool:
    """Whether some accepted text keeps the words that stand on a canvas.

    Args:
        held: what holds it.
        given: words, the mask token elsewhere.
        mask_id: the mask token.
    """
    edges = held.edges
    able = edges.final
    for token in given.flip(0).tolist():
        fits = able[edges.targets] & (~edges.given if token == mask_id else edges.tokens == token)
        able = torch.zeros_like(able).index_put((edges.sources[fits],), torch.tensor(True))
    return bool(able[held.automaton.start])


def _restricted(chances: Float[Tensor, "n v"], given: Int64[Tensor, "n"], mask_id: int) -> Float[Tensor, "n v"]:
    """Log-probabilities with certainty where a word stands."""
    stands = given != mask_id
    told = chances.clone()
    told[:, mask_id] = LEAST
    told[stands] = LEAST
    told[stands, given[stands]] = 0.0
    return told.clamp_min(LEAST)


def _path(
    chances: Float[Tensor, "n v"],
    edges: Edges,
    given: Bool[Tensor, "n"],
    first: int,
    draws: Float[Tensor, "n"] | None,
    confidence: str,
) -> tuple[Int64[Tensor, "n"], Float[Tensor, "n"]]:
    """The likeliest accepted text, or one drawn, and the confidence in each of its words.

        behind_n(s) = 1 if s may end,   behind_i(s) = Σ over edges s → s' of p_i(token) behind_{i+1}(s')

    with the greatest term in place of the sum for the likeliest text. A text is then read forward, state by state.
    """
    sources, tokens, targets, final = edges.sources, edges.tokens, edges.targets, edges.final
    n, states = len(chances), len(final)

    def told(place: int) -> Float[Tensor, "e"]:
        """Log-probability of each edge at a place."""
        along = chances[place, tokens]
        return along if given[place] else along.masked_fill(edges.given, LEAST)

    totals = torch.full((n + 1, states), LEAST, dtype=chances.dtype)
    totals[n, final] = 0.0
    greatest = totals.clone()
    for place in range(n - 1, -1, -1):
        along = told(place)
        totals[place] = _log_sums(along + totals[place + 1, targets], sources, states)
        terms = along + greatest[place + 1, targets]
        greatest[place] = greatest[place].scatter_reduce(0, sources, terms, "amax").clamp_min(LEAST)
    if totals[0, first] <= LEAST / 2:
        raise UsageError("no text that matches keeps the words that stand; change them, or leave them out")
    ahead = torch.full((states,), LEAST, dtype=chances.dtype)
    ahead[first] = 0.0
    words, sure, state = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=chances.dtype), first
    for place in range(n):
        along, leaving = told(place), (sources == state).nonzero()[:, 0]
        behind = (greatest if draws is None else totals)[place + 1, targets[leaving]]
        terms = along[leaving] + behind
        if draws is None:
            chosen = leaving[terms.argmax()]
        else:
            shares = (terms - terms.max()).exp().cumsum(0)
            chosen = leaving[
                min(int(torch.searchsorted(shares, draws[place] * shares[-1], right=True)), len(shares) - 1)
            ]
        words[place] = tokens[chosen]
        posterior = torch.zeros(chances.shape[1], dtype=chances.dtype)
        weights = (ahead[sources] + along + totals[place + 1, targets] - totals[0, first]).exp()
        posterior.scatter_add_(0, tokens, weights)
        sure[place] = _confidence(posterior, int(words[place]), confidence)
        ahead = _log_sums(ahead[sources] + along, targets, states)
        state = int(targets[chosen])
    return words, sure


def _log_sums(terms: Float[Tensor, "e"], index: Int64[Tensor, "e"], size: int) -> Float[Tensor, "s"]:
    """log Σ exp over the terms of each index."""
    most = torch.full((size,), LEAST, dtype=terms.dtype).scatter_reduce(0, index, terms, "amax")
    sums = torch.zeros_like(most).scatter_add(0, index, (terms - most[index]).exp())
    return (most + sums.clamp_min(1e-300).log()).clamp_min(LEAST)


def _confidence(posterior: Float[Tensor, "v"], word: int, kind: str) -> Tensor:
    """How sure a word is by its posterior, see `CONFIDENCES`."""
    if kind == "probability":
        return posterior[word].clamp_max(1.0)
    if kind == "margin":
        best = posterior.topk(2).values
        return best[0] - best[1]
    return torch.special.xlogy(posterior, posterior).sum()
