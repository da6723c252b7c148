"""One network call of a model of any family, from tensors as `transformers` hands them on."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manta.errors import UsageError
from manta.families.manta_lm import TAG_OF_STYLE
from manta.families.prompted import Memory
from manta.text import MASK

Prompt = tuple[Tensor | None, Tensor | None]
"""Tokens of the prompts, and where they are real."""
State = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a flow: the state, its time and the last estimate."""
Told = tuple[Tensor, Tensor | None]
"""Logits, and of a flow the estimate of the clean state."""


def call(
    lm: Any, tokens: Tensor | None, mask: Tensor | None, prompt: Prompt, state: State, style: str
) -> tuple[Tensor, Tensor | None]:
    """Logits of a call, and of a flow its estimate; see `MantaLanguageModel.forward` for the arguments.

    Raises:
        UsageError: something is missing, or means nothing to the family.
    """
    if style not in TAG_OF_STYLE:
        raise UsageError(f"style should be one of {', '.join(TAG_OF_STYLE)}, received {style!r}")
    if lm.family not in CALLS:
        raise UsageError(f"a model of the family {lm.family} is not called from tensors; write with it by `generate`")
    flow = lm.family == "manta"
    if not flow and any(part is not None for part in state):
        raise UsageError(f"inputs_embeds, timesteps and self_cond are for a Manta-LM, not for the family {lm.family}")
    if flow and (state[0] is None or state[1] is None):
        raise UsageError("a Manta-LM is called on a state: give inputs_embeds, its state, and timesteps, its time")
    if not flow and tokens is None:
        raise UsageError(f"a model of the family {lm.family} is called on tokens; give input_ids")
    return CALLS[lm.family](lm, tokens, mask, prompt, state, TAG_OF_STYLE[style])


def _memory(lm: Any, prompt: Prompt, rows: int, tag: int) -> Memory:
    tokens, mask = prompt
    device = lm.device
    tokens = torch.zeros(rows, 0, dtype=torch.long, device=device) if tokens is None else tokens.to(device)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(device) != 0
    _check_right(real, "prompt_attention_mask")
    lengths = real.sum(1)
    return lm.model.memory(tokens, lengths, torch.full_like(lengths, tag))


def _canvas(tokens: Tensor, mask: Tensor | None) -> Tensor:
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(tokens.device) != 0
    _check_right(real, "attention_mask")
    return real


def _check_right(real: Tensor, name: str) -> None:
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise UsageError(f"{name} has padding before what is real; pad at the right")


def _left_to_right(lm: Any, tokens: Tensor, mask: Tensor | None, prompt: Prompt, state: State, tag: int) -> Told:
    _canvas(tokens, mask)  # what is padded at the right is seen by nobody
    return lm.model(tokens, _memory(lm, prompt, len(tokens), 0)), None


def _row(lm: Any, tokens: Tensor, mask: Tensor | None, prompt: Prompt, state: State, tag: int) -> Told:
    if prompt[0] is not None:
        raise UsageError("of a decoder the prompt is part of the row; put it into input_ids, leave prompt_ids out")
    return _left_to_right(lm, tokens, mask, prompt, state, tag)


def _masked(lm: Any, tokens: Tensor, mask: Tensor | None, prompt: Prompt, state: State, tag: int) -> Told:
    memory = _memory(lm, prompt, len(tokens), 0 if lm.family == "aligned" else tag)
    return lm.model(tokens, _canvas(tokens, mask), lm.model.trunk.project(memory.states, memory.mask)), None


def _blocks(lm: Any, tokens: Tensor, mask: Tensor | None, prompt: Prompt, state: State, tag: int) -> Told:
    length = lm.model.config.block_length
    if tokens.shape[1] % length or bool((tokens[:, :-length] == MASK).any()):
        raise UsageError(
            f"a block-causal model is called on whole blocks of {length} tokens, of which the last alone may hide "
            f"words; received {tokens.shape[1]} tokens"
        )
    memory = _memory(lm, prompt, len(tokens), 0)
    read = lm.model.trunk.project(memory.states, memory.mask)
    return lm.model(tokens, tokens, _canvas(tokens, mask), read), None


def _flow(lm: Any, tokens: Tensor | None, mask: Tensor | None, prompt: Prompt, state: State, tag: int) -> Told:
    at, t, self_cond = state
    assert at is not None and t is not None, "call has seen to it"
    if tokens is None:
        shape = (len(at), at.shape[1] * lm.model.space.rate)
        tokens = torch.full(shape, MASK, device=at.device)
    cond = lm.model.condition(_memory(lm, prompt, len(at), tag), _canvas(tokens, mask), tokens)
    estimate = lm.model.act(at, t, cond=cond, self_cond=self_cond)
    return lm.model.logits(estimate.aux), estimate.clean


CALLS: Mapping[str, Callable[..., Told]] = {
    "ar": _left_to_right,
    "decoder": _row,
    "masked": _masked,
    "aligned": _masked,
    "block": _blocks,
    "manta": _flow,
}
"""How each family is called."""
