"""In which direction a Manta-LM's feedback loop repeats itself, measured on its own texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError
from manta.families.events import BATCH, GenerateOptions, Request, finished
from manta.families.manta_lm import MantaLM
from manta.flow.escape import repetition_direction
from manta.metrics.diversity import Tokenize, repeated_share

NUM_TEXTS = 400
"""Texts that the direction of the published models was measured on."""


def learn_repetition(
    lm: MantaLM,
    prompts: Sequence[str | None],
    options: GenerateOptions | None = None,
    *,
    seed: int = 0,
    n: int = 4,
    tokenize: Tokenize = str.split,
) -> tuple[Float[Tensor, "c"], float]:
    """Measure the direction that `escape_scale` moves away from; give it to the model as `lm.repetition`.

    Args:
        lm: a Manta-LM.
        prompts: a text is written for each; some hundred.
        options: how they are written, without an escape.
        seed: text i uses seed + i.
        n: words of the n-grams whose repetition counts; fewer for short texts.
        tokenize: splits a text into words.

    Returns:
        Direction and gap, as `flow.repetition_direction`.

    Raises:
        UsageError: the budget is too small for an estimate to be fed back.
        DataError: the texts do not differ in repetition.
    """
    options = replace(options or GenerateOptions(), escape_scale=0.0)
    feedback, texts = feedback_of(lm, prompts, options, seed=seed)
    repeated = torch.tensor([repeated_share([text], n, tokenize) for text in texts])
    return repetition_direction(feedback, repeated)


def feedback_of(
    lm: MantaLM, prompts: Sequence[str | None], options: GenerateOptions, *, seed: int = 0, batch_size: int = BATCH
) -> tuple[Float[Tensor, "n c"], list[str]]:
    """Write texts and listen to what is fed back.

    Returns:
        Of each text the clean estimates fed back, averaged over its positions and calls; and the texts.

    Raises:
        UsageError: nothing is fed back.
    """
    rows: list[Tensor] = []
    texts: list[str] = []
    for begin in range(0, len(prompts), batch_size):
        chosen = prompts[begin : begin + batch_size]
        requests = [Request(prompt=prompt, seed=seed + begin + i) for i, prompt in enumerate(chosen)]
        heard: list[Tensor] = []

        def listen(module: Any, given: Any, named: dict[str, Any], heard: list[Tensor] = heard) -> None:
            if (fed := named["self_cond"]) is not None:
                mask = named["cond"].mask[:, :: lm.model.space.rate, None].to(fed.dtype)
                heard.append((fed * mask).sum(1) / mask.sum(1))

        ear = lm.model.field.register_forward_pre_hook(listen, with_kwargs=True)
        try:
            done = list(finished(lm.generate(requests, options, batch_size=batch_size)))
        finally:
            ear.remove()
        if not heard:
            raise UsageError(f"with {options.num_steps} network calls no estimate is fed back; raise `num_steps`")
        rows.append(torch.stack(heard).mean(0).float().cpu())
        texts += [event.text for event in sorted(done, key=lambda event: event.index)]
    return torch.cat(rows), texts
