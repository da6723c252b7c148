"""Adaptive conditions of texts that are yet to be written."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from manta.families.canvas import Template
from manta.families.events import GenerateOptions
from manta.families.model import MantaModel
from manta.families.prompted import Memory
from manta.flow.adaptive import code_of, drawn_codes


def expected_codes(
    model: MantaModel,
    memory: Memory,
    templates: Sequence[Template | None],
    generators: Sequence[torch.Generator],
    options: GenerateOptions,
) -> Float[Tensor, "b k"] | None:
    """Codes as the prompts let expect: the likeliest, or a draw; none beside given words, which may say another.

    Args:
        model: its own code, if it has one.
        memory: the encoded prompts.
        templates: given words of each text, if there are any.
        generators: one a text.
        options: the style says whether codes are drawn.
    """
    bits = model.config.bits
    if not bits:
        return None
    chances = model.code_logits(memory).softmax(-1).cpu()
    codes = code_of(chances.argmax(-1), bits)
    if options.style == "diverse":
        codes = drawn_codes(chances, generators, bits)
    free = torch.tensor([template is None for template in templates])
    return (codes * free[:, None]).to(memory.states.device)
