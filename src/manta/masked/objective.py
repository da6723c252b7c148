"""What a masked model is taught, and how likely it holds a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.masked.elastic import Layout
from manta.masked.maskers import ENTROPY, MASKERS, entropy, masker
from manta.masked.rates import Rates
from manta.types import Loss

Denoiser = Callable[[Tensor], Tensor]
"""`denoiser(tokens "b n") → logits "b n v"`, hidden words carrying the mask token."""


@dataclass(frozen=True, kw_only=True)
class MaskedObjectiveConfig:
    """How words are hidden and weighed."""

    masker: str = "uniform"
    """Which words: `uniform`, `span` (runs), `rarity` (rare words more often) or `entropy` (those of which the model is
    undecided, which takes two forward passes more)."""
    least_share: float = 1e-3
    """Least share of hidden words."""
    most_share: float = 1.0
    """Most share of hidden words: between bounds narrower than these the loss varies less and is no bound any more
    (clipped schedules, arXiv 2503.09573); likelihoods are measured at all shares whatever it is."""
    rates: Literal["fixed", "auto"] = "fixed"
    """`fixed` draws shares between these bounds; `auto` finds, while it trains, the bounds of a width of 1/2 or more
    between which the loss varies least, and draws one row in eight from `least_share` to 1."""
    copies: int = 1
    """Times that each text enters a step, each time under a mask of its own."""
    complementary: bool = False
    """Each text enters a step twice, the second time with the complement hidden: every word is supervised."""
    weighting: str = "likelihood"
    """`likelihood` weighs a row by 1/share, the bound of LLaDA and MDLM; `mean` weighs hidden words alike."""

    def __post_init__(self) -> None:
        if self.masker not in (*MASKERS, ENTROPY):
            raise ConfigError(f"masker should be one of {', '.join((*MASKERS, ENTROPY))}, received {self.masker!r}")
        if self.weighting not in ("likelihood", "mean"):
            raise ConfigError(f"weighting should be 'likelihood' or 'mean', received {self.weighting!r}")
        if not 0 < self.least_share < 1:
            raise ConfigError(f"least_share should lie in (0, 1), received {self.least_share}")
        if not self.least_share < self.most_share <= 1:
            raise ConfigError(
                f"most_share should be above least_share, {self.least_share:g}, and at most 1, received "
                f"{self.most_share}"
            )
        if self.complementary and (self.most_share < 1 or self.rates == "auto"):
            raise ConfigError("complementary masks are of all shares; leave most_share and rates out")
        if self.rates == "auto" and self.least_share > 0.5:
            raise ConfigError(
                f"rates = auto looks for bounds 1/2 apart; lower least_share, {self.least_share:g}, to 0.5"
            )
        if self.rates == "auto" and self.most_share < 1:
            raise ConfigError("rates = auto finds the bounds itself; leave most_share out, or set rates = fixed")
        if self.masker == ENTROPY and self.complementary:
            raise ConfigError("complementary masks hide every word in turn; the masker entropy is for one mask a text")
        if self.copies < 1 or (self.complementary and self.copies > 1):
            raise ConfigError(
                f"copies should be at least 1, and 1 with complementary masks, which are two; received {self.copies}"
            )

    @property
    def times(self) -> int:
        """Rows of a step for each text."""
        return 2 if self.complementary else self.copies


def found_rates(config: MaskedObjectiveConfig, measured: dict[str, Any]) -> Rates | None:
    """What finds the shares of hidden words while a model trains; None where they are fixed.

    Args:
        config: says which.
        measured: of the run, which keeps it; see `TrainedWriter.stages`.
    """
    if config.rates != "auto":
        return None
    measured["rates"] = found = Rates()
    return found


def masked_cross_entropy(
    denoiser: Denoiser,
    tokens: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    *,
    mask_id: int,
    generator: torch.Generator,
    config: MaskedObjectiveConfig,
    keep: Bool[Tensor, "b n"] | None = None,
    layout: Callable[[Tensor, Tensor], Layout] | None = None,
    asked: Denoiser | None = None,
    rates: Rates | None = None,
) -> Loss:
    """Cross-entropy of hidden words, weighted by the inverse of their share.

        t ~ U(0, 1),  p = (1 − ε) t + ε,  loss = 1/(b·n) Σ_i [i hidden] −log p_θ(token_i | rest) / p

    an upper bound of the negative log-likelihood a word (Sahoo et al., MDLM, arXiv 2406.07524; Nie et al., LLaDA,
    arXiv 2502.09992). The shares of a batch are stratified, one from each of b strata. Of a text's complementary
    masks each has the marginal law of a single one but for the least share, so the expected loss is the same.

    Args:
        denoiser: logits of every position given the words left, of `config.times` rows a text, copy after copy.
        tokens: the texts.
        mask: True where a word counts.
        mask_id: token that stands for a hidden word.
        generator: source of the shares and positions.
        config: maskers and weights.
        keep: words that are never hidden, such as a given template.
        layout: `layout(tokens, hidden)` lays rows with hidden words out anew, see `manta.masked.elastic`; the loss is a
            bound for rows that it leaves as they are.
        asked: whom the masker `entropy` asks; the denoiser, if left out.
        rates: which shares; it learns from what is trained on. None: all from `least_share` to `most_share`.

    Returns:
        `Loss` with parts `nats` (a hidden word, unweighted) and `supervised` (share of the words that were supervised
        in this step), and with `rates` their bounds, `low` and `high`.
    """
    texts, words = len(tokens), mask if keep is None else mask & ~keep
    if not config.complementary:
        tokens, words = tokens.repeat(config.copies, 1), words.repeat(config.copies, 1)
    b = len(tokens)
    strata = (torch.randperm(b, generator=generator) + torch.rand(b, generator=generator)) / b
    if rates is None:
        share = config.least_share + (config.most_share - config.least_share) * strata
    else:
        share = rates.shares(strata, config.least_share)
    share = share.to(tokens.device)
    hide = entropy(asked or denoiser, mask_id) if config.masker == ENTROPY else masker(config.masker)
    hidden = hide(tokens, words, share, generator)
    if config.complementary:
        share = torch.cat([share, (1 - share).clamp_min(config.least_share)])
        hidden = torch.cat([hidden, words & ~hidden])
        tokens, words = tokens.repeat(2, 1), words.repeat(2, 1)
    laid = Layout(tokens.masked_fill(hidden, mask_id), tokens, hidden) if layout is None else layout(tokens, hidden)
    logits, told = denoiser(laid.shown), laid.hidden
    nats = F.cross_entropy(logits[told].float(), laid.target[told], reduction="none")
    weight = (1 / share)[:, None].expand(told.shape)[told] if config.weighting == "likelihood" else 1.0
    count = words.sum() if config.weighting == "likelihood" else max(1, len(nats))
    total = (nats * weight).sum() / count
    seen = hidden.view(config.times, texts, -1).any(0)
    supervised = seen.sum() / words[:texts].sum().clamp_min(1)
    parts = {"nats": nats.detach().mean() if len(nats) else total.detach(), "supervised": supervised}
    if rates is not None:
        parts |= {"low": total.new_tensor(rates.low), "high": total.new_tensor(rates.high)}
        if torch.is_grad_enabled():
            rows = torch.zeros_like(told, dtype=nats.dtype).masked_scatter(told, nats.detach()).sum(1)
            size = words.sum(1)
            rates.observe(share[size > 0], (rows / (share * size.clamp_min(1)))[size > 0])
    return Loss(total, parts, int(count))


@dataclass(frozen=True)
class LikelihoodBound:
    """A Monte-Carlo estimate of an upper bound of −log p(text)."""

    nats: Float[Tensor, "b"]
    """The bound of each text."""
    standard_error: Float[Tensor, "b"]
    """Of the estimate of the bound."""
    num_samples: int
    """Masks a text."""


@torch.no_grad()
def likelihood_bound(
    denoiser: Denoiser,
    tokens: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    *,
    mask_id: int,
    generators: Sequence[torch.Generator],
    width: int,
    num_samples: int = 128,
) -> LikelihoodBound:
    """Bound −log p(text) by hiding l words, l uniform in 1 … n, at random places.

        −log p(text) ≤ E_l E_places [ n/l Σ_hidden −log p_θ(token_i | rest) ]

    The same bound as `masked_cross_entropy`'s with the number of hidden words drawn instead of their share, which has
    less variance (Ou et al., arXiv 2406.03736; LLaDA uses 128 samples). l is stratified over the samples. It is exact
    if the denoiser's conditionals fit one joint distribution.

    Args:
        denoiser, tokens, mask, mask_id: as in `masked_cross_entropy`.
        generators: one a text, so that a text's bound does not depend on the texts beside it.
        width: positions of the longest text that any batch may hold, for which the draws are made.
        num_samples: masks a text.

    Raises:
        UsageError: with fewer than two samples, or not one generator a text.
    """
    if num_samples < 2:
        raise UsageError(f"a standard error needs two samples or more, received num_samples={num_samples}")
    if len(generators) != len(tokens):
        raise UsageError(f"{len(tokens)} texts need {len(tokens)} generators, received {len(generators)}")
    counts, n = mask.sum(1), tokens.shape[1]
    draws = []
    for index in range(num_samples):
        uniform = torch.stack([torch.rand(1 + width, generator=g, dtype=torch.float64) for g in generators])
        jitter, places = uniform[:, 0].to(tokens.device), uniform[:, 1 : 1 + n].to(tokens.device)
        # A sum such as 127 + 0.9999… rounds to the next stratum's end, which would hide one word more than there are.
        hide = torch.minimum((((index + jitter) / num_samples) * counts).long() + 1, counts.clamp_min(1))
        places = F.pad(places, (0, n - places.shape[1])).masked_fill(~mask, 2.0)
        hidden = (places.argsort(dim=1, stable=True).argsort(1) < hide[:, None]) & mask
        logits = denoiser(tokens.masked_fill(hidden, mask_id)).float()
        nats = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        # A running sum is the same however far the batch is padded.
        draws.append((nats * hidden).double().cumsum(1)[:, -1] * counts / hide)
    samples = torch.stack(draws)
    error = samples.std(0) / num_samples**0.5
    return LikelihoodBound(samples.mean(0).float(), error.float(), num_samples)
