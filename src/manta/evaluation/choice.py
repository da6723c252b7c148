"""Typed answers: which of some texts a model holds likeliest, and how likely each is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from manta.errors import RequestError, UsageError
from manta.families.batching import to_batch
from manta.families.canvas import prompt_tokens
from manta.families.events import Request, Writer
from manta.families.trained import TrainedWriter
from manta.runtime import MAX_SEED, make_generator

MOST_CHOICES = 1_000
"""Most texts to choose among."""
ROWS = 64
"""Texts of a batch."""


@dataclass(frozen=True)
class Choice:
    """A model's answer among given ones."""

    text: str
    """The likeliest."""
    chances: dict[str, float]
    """Probability of each, given that it is one of them: softmax of their log-likelihoods."""
    kind: Literal["exact", "bound"]
    """`bound`: the log-likelihoods are bounds, drawn with equal seeds for all choices of a prompt."""

    @property
    def expected(self) -> float | None:
        """The mean of choices that are all numbers, such as a score; None of others."""
        try:
            return sum(float(text) * chance for text, chance in self.chances.items())
        except ValueError:
            return None


def choose(
    lm: Writer,
    prompts: Sequence[str | None],
    among: Sequence[str],
    *,
    samples: int = 32,
    seed: int = 0,
) -> list[Choice]:
    """Answer prompts by the likeliest of some texts.

        p(choice | prompt, one of them) = p(choice | prompt) / Σ p(other | prompt)

    The closing token counts, so a choice is that text and no longer one. Models with a bound draw the same hidden words
    by place for all choices of a prompt; bounds of texts of different lengths are compared as they are.

    Args:
        lm: of a family with a likelihood: left to right, aligned, masked or block-causal.
        prompts: to answer.
        among: two texts or more, all different.
        samples: draws a text for a bound.
        seed: of those draws.

    Raises:
        UsageError: a model without a likelihood, or choices that are none.
        RequestError: a prompt or a choice that the model has no room for.
    """
    if lm.likelihood == "none":
        raise UsageError(f"no sound bound is known for the family {lm.family}, so it cannot choose; name another model")
    if len(among) < 2 or len(set(among)) < len(among) or len(among) > MOST_CHOICES:
        raise UsageError(f"give from two to {MOST_CHOICES:,} choices, all different, received {len(among)}")
    writer = cast(TrainedWriter[Any], lm)
    shape, tokenizer = writer.model.config, writer.tokenizer
    texts = [tokenizer.encode(text) for text in among]
    for text, tokens in zip(among, texts, strict=True):
        if not 0 < len(tokens) <= shape.max_text:
            raise RequestError(
                f"the choice {text[:60]!r} takes {len(tokens)} tokens, the model writes from 1 to {shape.max_text}"
            )
    asked = [prompt_tokens(Request(prompt=prompt), tokenizer, shape.max_prompt) for prompt in prompts]
    rows = [(prompt, text, at) for at, prompt in enumerate(asked) for text in texts]
    values: list[torch.Tensor] = []
    for begin in range(0, len(rows), ROWS):
        some, words, at = zip(*rows[begin : begin + ROWS], strict=True)
        batch = to_batch(some, words, writer.device)
        generators = [make_generator((seed + row) % (MAX_SEED + 1)) for row in at]
        values.append(writer.log_likelihood(batch, generators, samples).value.double().cpu())
    table = torch.cat(values).view(len(prompts), len(among)) if values else torch.zeros(0, len(among))
    kind: Literal["exact", "bound"] = "exact" if lm.likelihood == "exact" else "bound"
    return [
        Choice(among[int(row.argmax())], dict(zip(among, row.softmax(0).tolist(), strict=True)), kind) for row in table
    ]
