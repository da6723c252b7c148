"""Sampling to a target: the temperature, and if need be the guidance, at which texts have a wanted entropy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from manta.errors import RequestError, UsageError
from manta.families.asked import follows
from manta.families.events import GenerateOptions, Request, Writer, finished
from manta.metrics.diversity import Tokenize, token_entropy

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0)
"""Guidance tried, in turn, where the texts have too much entropy at temperature 0: guidance lowers it."""


class Tried(NamedTuple):
    """Settings and what they gave."""

    temperature: float
    guidance_scale: float
    entropy: float
    """Mean entropy a text, nats."""


@dataclass(frozen=True)
class Met:
    """Settings that meet a target."""

    options: GenerateOptions
    """The options asked for, with the temperature and guidance found."""
    entropy: float
    """What they give, in nats."""
    tried: tuple[Tried, ...]
    """All that was tried, in order."""


def meet_entropy(
    lm: Writer,
    prompts: Sequence[str | None],
    target: float,
    options: GenerateOptions | None = None,
    *,
    guidance_scales: Sequence[float] = (1.0,),
    temperatures: tuple[float, float] = (0.0, 2.0),
    tolerance: float = 0.02,
    max_tries: int = 12,
    seed: int = 0,
    tokenize: Tokenize = str.split,
) -> Met:
    """Find the temperature at which a model's texts have a wanted mean entropy, by bisection with common seeds.

        H(T) = token_entropy(texts written at temperature T),    find T with |H(T) - target| <= tolerance

    Every temperature writes the same requests with the same seeds, so that H changes with T alone. The first guidance
    at which the target lies between the H of both ends is taken.

    Args:
        lm: a model of any family.
        prompts: held-out prompts, None for none; some dozens, as H is only as sure as its mean over them.
        target: mean entropy a text, in nats, 0 or more; compare with that of human texts under the same `tokenize`.
        options: how to write; temperature and guidance are replaced, and words are told without counts of the training
            texts unless these ask for them.
        guidance_scales: those to try, the least first.
        temperatures: least and greatest, 0 or more.
        tolerance: in nats. Where H jumps over the target, the nearest temperature counts; see `Met.entropy`.
        max_tries: most bisections at one guidance.
        seed: text i uses seed + i.
        tokenize: splits a text, see `token_entropy`.

    Raises:
        UsageError: a negative target, no prompts, or temperatures that do not rise.
        RequestError: out of reach; the message says what the model reaches.

    Source: texts are compared at the data's own entropy, `token_entropy` has the sources.
    """
    if target < 0 or not prompts or not 0 <= temperatures[0] < temperatures[1]:
        raise UsageError(
            f"a target is 0 nats or more, on one prompt or more, at temperatures that rise from 0 or more; received "
            f"{target}, {len(prompts)} prompts, {temperatures}"
        )
    at = _Measured(lm, prompts, options or GenerateOptions(), seed, tokenize)
    for scale in guidance_scales:
        low, high = temperatures
        if at(low, scale) > target + tolerance:
            continue
        if at.last < target - tolerance and at(high, scale) < target - tolerance:
            break  # and more guidance only lowers it
        for _ in range(max_tries):
            if abs(at.last - target) <= tolerance:
                break
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle, scale) < target else (low, middle)
        nearest = min(
            (row for row in at.rows if row.guidance_scale == scale), key=lambda row: abs(row.entropy - target)
        )
        found = at.how(nearest.temperature, scale)
        return Met(found, nearest.entropy, tuple(at.rows))
    ends = [pick(at.rows, key=lambda row: row.entropy) for pick in (min, max)]
    reached = [f"{r.entropy:.2f} (temperature {r.temperature:g}, guidance {r.guidance_scale:g})" for r in ends]
    raise RequestError(
        f"a mean entropy of {target:g} nats a text is out of reach: the texts had from {reached[0]} to {reached[1]}; "
        "choose a target between, or another `num_steps`"
    )


class _Measured:
    """Entropies of a model's texts, each measurement kept."""

    def __init__(
        self, lm: Writer, prompts: Sequence[str | None], options: GenerateOptions, seed: int, tokenize: Tokenize
    ) -> None:
        if options.fluency is None and follows(lm.family, "fluency"):
            options = replace(options, fluency=0.0)  # unasked they are weighed at temperature 0 alone: H would jump
        self.lm, self.options, self.tokenize = lm, options, tokenize
        self.requests = [Request(prompt=prompt, seed=seed + i) for i, prompt in enumerate(prompts)]
        self.rows: list[Tried] = []

    def __call__(self, temperature: float, guidance_scale: float) -> float:
        how = self.how(temperature, guidance_scale)
        texts = [event.text for event in finished(self.lm.generate(self.requests, how))]
        self.rows.append(Tried(temperature, guidance_scale, token_entropy(texts, self.tokenize)))
        return self.last

    def how(self, temperature: float, guidance_scale: float) -> GenerateOptions:
        """The options of a try; at temperature 0 nothing is drawn, so that there is nothing to cut."""
        options = replace(self.options, temperature=temperature, guidance_scale=guidance_scale)
        return options if temperature else replace(options, top_k=None, top_p=1.0)

    @property
    def last(self) -> float:
        """The latest entropy."""
        return self.rows[-1].entropy
