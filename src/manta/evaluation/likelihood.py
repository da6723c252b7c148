"""How likely a model finds human texts: exact where the family allows it, a bound that says how it was got, or none."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from manta.evaluation.dataset import EvaluationSet
from manta.evaluation.writing import Progress, silent
from manta.families.batching import to_batch
from manta.families.events import Writer
from manta.families.trained import LogLikelihood, TrainedWriter
from manta.metrics import Interval, bootstrap_ratio
from manta.runtime import MAX_SEED, make_generator
from manta.text import Tokenizer

ROWS = 64
"""Texts of a batch."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """−log p of human texts given their prompts under a model, and what kind of figure it is."""

    kind: Literal["exact", "bound", "none"]
    """`bound` is from above: the text is at least so likely."""
    estimator: str
    """How it was got, or why there is none."""
    samples: int | None = None
    """Random draws a text; None where nothing is drawn."""
    self_conditioning: Literal["off"] = "off"
    """Whether the model read its own estimate: a bound that lets it has to differentiate through it; ours does not."""
    texts: int = 0
    """Texts measured."""
    too_long: int = 0
    """Texts left out since the model has no room for them or for their prompt."""
    nats_per_token: float | None = None
    """Of the model's own tokens, the closing one included: for models of one tokenizer only."""
    bits_per_byte: Interval | None = None
    """Of the text in UTF-8, with a bootstrap interval over texts: comparable between tokenizers."""
    standard_error: float | None = None
    """Of `nats_per_token`, from the random draws alone."""

    def row(self) -> dict[str, float | int | str | None]:
        """The figures by name."""
        bits = self.bits_per_byte
        return {
            "kind": self.kind,
            "estimator": self.estimator,
            "samples": self.samples,
            "self_conditioning": self.self_conditioning,
            "texts": self.texts,
            "too_long": self.too_long,
            "nats_per_token": self.nats_per_token,
            "standard_error": self.standard_error,
            "bits_per_byte": bits and bits.value,
            "bits_per_byte_low": bits and bits.low,
            "bits_per_byte_high": bits and bits.high,
        }


def likelihood(
    lm: Writer,
    data: EvaluationSet,
    *,
    texts: int = 256,
    samples: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> Likelihood:
    """Measure −log p(text | prompt) of human texts, one a prompt.

        autoregressive: −log p = −Σ log p(token | tokens before it), the closing token included
        masked:         −log p ≤ −log p(length) + E_l E_places [ n/l Σ_hidden −log p(token | rest) ]

    A Manta-LM has none: its readout is trained beside the flow, and no bound on the texts follows from either.

    Args:
        lm: any family.
        data: held-out texts.
        texts: at most so many, evenly spaced over the set.
        samples: draws a text for the bound, at least 2.
        seed: of those draws; text i of the set uses `seed + i`, whatever is measured beside it.
        progress: told of the texts done.

    Returns:
        The figure with its kind; nothing but the kind where no text fits.

    Raises:
        UsageError: fewer than two samples for a bound.

    Source: Ou et al., arXiv 2406.03736, for the bound (see `manta.masked.likelihood_bound`).
    """
    if lm.likelihood == "none":
        return Likelihood(kind="none", estimator=f"no sound bound is known for the family {lm.family}")
    return _measured(cast(TrainedWriter[Any], lm), data, texts, progress, samples=samples, seed=seed)


def _measured(
    lm: TrainedWriter[Any], data: EvaluationSet, num: int, progress: Progress, *, samples: int, seed: int
) -> Likelihood:
    at = (
        [round(i * len(data.prompts) / num) for i in range(num)]
        if num < len(data.prompts)
        else range(len(data.prompts))
    )
    pairs = [(data.prompts[i], data.references[i][0], i) for i in at]
    rows = list(_rows(pairs, lm.tokenizer, lm.model.config.max_prompt, lm.model.config.max_text))
    rows.sort(key=lambda row: len(row[1]))
    if len(rows) < 2:
        return Likelihood(
            kind="none", estimator=f"{len(rows)} of {len(pairs)} texts fit the model", too_long=len(pairs)
        )
    found: list[LogLikelihood] = []
    for begin in range(0, len(rows), ROWS):
        prompts, texts, *_, draws = zip(*rows[begin : begin + ROWS], strict=True)
        batch = to_batch(prompts, texts, lm.model.embedding.weight.device)
        generators = [make_generator((seed + at) % (MAX_SEED + 1)) for at in draws]
        found.append(lm.log_likelihood(batch, generators, samples))
        progress("likelihood", min(begin + ROWS, len(rows)), len(rows))
    tokens = sum(len(text) + 1 for _, text, *_ in rows)
    total = torch.cat([-part.value.double().cpu() for part in found])
    errors = [part.standard_error.double().cpu() for part in found if part.standard_error is not None]
    size = torch.tensor([bytes_ for *_, bytes_, _ in rows], dtype=torch.float64) * math.log(2)
    return Likelihood(
        kind=lm.likelihood,
        estimator=lm.estimator,
        samples=samples if lm.likelihood == "bound" else None,
        texts=len(rows),
        too_long=len(pairs) - len(rows),
        nats_per_token=float(total.sum()) / tokens,
        bits_per_byte=bootstrap_ratio(total, size, generator=make_generator(seed)),
        standard_error=float(torch.cat(errors).square().sum().sqrt()) / tokens if errors else None,
    )


def _rows(
    pairs: Sequence[tuple[str | None, str, int]], tokenizer: Tokenizer, max_prompt: int, max_text: int
) -> Iterator[tuple[list[int], list[int], int, int]]:
    """Tokens of prompt and text, the text's bytes and its number, of the pairs that fit."""
    for prompt, text, at in pairs:
        asked = tokenizer.encode(prompt) if prompt else []
        tokens = tokenizer.encode(text)
        if len(asked) <= max_prompt and 0 < len(tokens) <= max_text:
            yield asked, tokens, len(text.encode("utf-8", "surrogatepass")), at
