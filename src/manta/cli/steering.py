"""What `manta generate` measures on held-out prompts before it writes: how far to steer."""

import sys
from dataclasses import replace
from typing import Any

from manta.errors import DataError, UsageError
from manta.families.options import GenerateOptions

NUM_HELD_OUT = 64
"""Held-out prompts that a target entropy is met on."""


def check_steering(options: Any, settings: GenerateOptions) -> None:
    """Refuse options of `manta generate` that do not fit each other, before a model is loaded.

    Raises:
        UsageError: see above.
    """
    if options.target_entropy is not None and settings.temperature:
        raise UsageError("give --target-entropy or --temperature, not both: the one chooses the other")
    if (options.target_entropy is not None or settings.escape_scale) and options.held_out is None:
        raise UsageError(
            "--target-entropy and --escape-scale are measured on prompts that the model was not trained on: "
            "name its data, as for manta train: --held-out DATA"
        )
    if options.held_out is not None and options.target_entropy is None and not settings.escape_scale:
        raise UsageError(
            "--held-out is what --target-entropy and --escape-scale are measured on; give one of these too"
        )


def steer(lm: Any, options: Any, settings: Any) -> Any:
    """Measure what the options ask for; says on stderr what was found.

    Args:
        lm: the model; it receives its direction of repetition.
        options: of `manta generate`.
        settings: how to write, as far as it was given.

    Returns:
        The settings, with temperature and guidance to meet the target.

    Raises:
        UsageError: the model's family has no feedback to escape from.
        DataError: there are no held-out prompts, or the model's texts do not differ in repetition.
        RequestError: the target is out of reach.
    """
    if settings.escape_scale:
        _learn_repetition(lm, options, settings)
    return settings if options.target_entropy is None else _meet_entropy(lm, options, settings)


def _learn_repetition(lm: Any, options: Any, settings: Any) -> None:
    from manta.families.asked import follows
    from manta.metrics.repetition import NUM_TEXTS, learn_repetition
    from manta.metrics.words import words_of

    if not follows(lm.family, "escape_scale"):
        raise UsageError(f"--escape-scale is for a Manta-LM, whose estimates are fed back; this is a {lm.family} model")
    held_out = _held_out(options.held_out, NUM_TEXTS)
    split = words_of(text for _, text in held_out).split
    prompts = [prompt for prompt, _ in held_out]
    prompts = [prompts[i % len(prompts)] for i in range(NUM_TEXTS)]
    print(f"measuring the direction of repetition on {NUM_TEXTS} texts", file=sys.stderr)
    lm.repetition, gap = learn_repetition(lm, prompts, settings, tokenize=split)
    print(f"the third that repeats most has {gap:.1%} more repeated 4-grams than the least", file=sys.stderr)


def _meet_entropy(lm: Any, options: Any, settings: Any) -> Any:
    from manta.metrics import token_entropy, words_of
    from manta.metrics.target_entropy import GUIDANCE_SCALES, meet_entropy

    held_out = _held_out(options.held_out, NUM_HELD_OUT)
    texts = [text for _, text in held_out]
    split = words_of(texts).split
    human = token_entropy(texts, split)
    # Guidance is Manta-LM's, moves its plan, and takes two calls where there was one.
    guided = lm.family == "manta" and settings.num_steps >= 6 and settings.flow_steps != 0
    scales = GUIDANCE_SCALES if guided and settings.guidance_scale == 1 else (settings.guidance_scale,)
    prompts = [prompt for prompt, _ in held_out]
    met = meet_entropy(lm, prompts, options.target_entropy, settings, guidance_scales=scales, tokenize=split)
    print(
        f"temperature {met.options.temperature:.3g} and guidance {met.options.guidance_scale:g} give "
        f"{met.entropy:.2f} nats a text on {len(prompts)} held-out prompts (target {options.target_entropy:g}, "
        f"human texts {human:.2f}; {len(met.tried)} settings tried)",
        file=sys.stderr,
    )
    return replace(settings, temperature=met.options.temperature, guidance_scale=met.options.guidance_scale)


def _held_out(data: str, num: int) -> list[tuple[str | None, str]]:
    """Different prompts of the dev split with a text each; of data without prompts, its texts."""
    from manta.text import read

    found: dict[str, tuple[str | None, str]] = {}
    for example in read(data, "dev"):
        found.setdefault(example.text if example.prompt is None else example.prompt, (example.prompt, example.text))
        if len(found) == num:
            break
    if not found:
        raise DataError(f"no example of {data} falls into the split dev, which is held out; give more data")
    return list(found.values())
