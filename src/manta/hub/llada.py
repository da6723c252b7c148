"""A drop-in for LLaDA's `generate.py`: the same arguments and results for any masked model."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from manta.errors import UsageError
from manta.hub.foreign.decoder import DecoderNet
from manta.hub.foreign.mdlm import DitNet
from manta.runtime import check_logits

END_OF_TEXT, END_OF_TURN = 126081, 126348
"""LLaDA's `<|endoftext|>` and `<|eot_id|>`."""


@torch.no_grad()
def generate(
    model: Callable[..., Any],
    prompt: Int64[Tensor, "b p"],
    attention_mask: Shaped[Tensor, "b p"] | None = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "b n"]:
    """Write `gen_length` tokens after each prompt, block by block, the surest first.

        for each block, for each of its steps:
            logits ← model(tokens);  with guidance u + (s + 1)(c − u), u of the row with its prompt hidden
            word ← argmax exp(logits) / (−log U)^temperature                       in float64
            confidence ← softmax(logits)[word], or a random number
            commit the most confident hidden positions, an even share of the block in each step

    With one seed it draws the numbers that the original draws. It differs in four ways: the mask token is never a word,
    so none is left at the end; guidance works without an attention mask; `confidence_eos_eot_inf` also works above
    temperature 0; and wrong arguments raise errors, more steps than words and masks in the prompt among them. Not to be
    confused with `manta.masked.decode`, the loop of manta's own decoders.

    Args:
        model: a `ForeignModel`; the bare net of one that is not shifted; any `model(tokens) → logits "b n v"`; or a
            model whose result has `.logits`. The latter two are called with `attention_mask=` when there is one.
        prompt: token ids; rows of different length are padded at the left.
        attention_mask: not 0 at the real tokens of the prompt, 0 at padding; None: all are real.
        steps: network calls for all blocks together, at most `gen_length`, a multiple of the number of blocks.
        gen_length: tokens to write, a multiple of `block_length`.
        block_length: tokens of a block; blocks are written from left to right.
        temperature: of the words; 0 takes the likeliest.
        cfg_scale: s, guidance by the prompt; 0 is off, above it a call holds twice the rows. (As a `guidance_scale` of
            manta this is s + 1.)
        remasking: `low_confidence` commits the most confident positions first, `random` random ones.
        mask_id: the mask token.
        logits_eos_inf: never write LLaDA's end of text.
        confidence_eos_eot_inf: commit LLaDA's end of text and end of turn last.
        generator: source of all draws, on the model's device; None: torch's own, as in the original.

    Returns:
        Prompt and text, n = p + gen_length.

    Raises:
        UsageError: for lengths or steps that do not divide, another remasking, a prompt that holds the mask token, or
            another mask token than the model's.
        ModelError: logits that no word can be chosen from.

    Source: Nie et al., "Large Language Diffusion Models", arXiv 2502.09992, algorithms 4 and 5 and appendix B.4;
        Gumbel draws in float64: Zheng et al., arXiv 2409.02908.
    """
    device = getattr(model, "device", prompt.device)
    num_blocks = _check(steps, gen_length, block_length, temperature, cfg_scale, remasking)
    if getattr(model, "mask_id", mask_id) != mask_id:
        raise UsageError(f"the model's mask token is {model.mask_id}, received mask_id={mask_id}")  # pyright: ignore
    if bool((prompt == mask_id).any()):
        raise UsageError(f"the prompt holds the mask token {mask_id}; generate only writes after the prompt")
    (b, p), n = prompt.shape, prompt.shape[1] + gen_length
    tokens = torch.full((b, n), mask_id, dtype=torch.long, device=device)
    tokens[:, :p] = prompt
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask.to(device), attention_mask.new_ones(b, gen_length).to(device)], 1)
    place, calls = torch.arange(n, device=device), 0
    real = None if attention_mask is None else attention_mask != 0
    for block in range(num_blocks):
        stop = p + (block + 1) * block_length
        for count in _even_split(block_length, steps // num_blocks):
            logits = _guided(model, tokens, attention_mask, p, cfg_scale, mask_id)
            logits[..., mask_id] = -torch.inf
            calls += 1
            check_logits(logits, calls, real)
            if logits_eos_inf:
                _exclude(logits, END_OF_TEXT)
            word = _draw(logits, temperature, generator).argmax(-1)
            if confidence_eos_eot_inf:
                _exclude(logits, END_OF_TEXT)
                _exclude(logits, END_OF_TURN)
            if remasking == "random":
                confidence = torch.rand((b, n), generator=generator, device=device)
            else:
                confidence = logits.softmax(-1).gather(-1, word[..., None])[..., 0]
            open_ = (tokens == mask_id) & (place < stop)
            chosen = confidence.masked_fill(~open_, -torch.inf).topk(count, -1).indices
            tokens = tokens.scatter(1, chosen, word.gather(1, chosen))
    return tokens


def _check(steps: int, gen_length: int, block_length: int, temperature: float, cfg_scale: float, order: str) -> int:
    """Number of blocks."""
    if gen_length < 1 or block_length < 1 or gen_length % block_length:
        raise UsageError(f"gen_length should be a multiple of block_length, received {gen_length} and {block_length}")
    num_blocks = gen_length // block_length
    if steps < 1 or steps % num_blocks or steps > gen_length:
        raise UsageError(
            f"steps counts the network calls for all blocks together: it should be a multiple of their number, "
            f"{num_blocks}, and at most gen_length, {gen_length}; received {steps}"
        )
    if not (0 <= temperature < math.inf and 0 <= cfg_scale < math.inf):
        raise UsageError(
            f"temperature and cfg_scale should be finite and 0 or more, received {temperature} and {cfg_scale}"
        )
    if order not in ("low_confidence", "random"):
        raise UsageError(f"remasking should be 'low_confidence' or 'random', received {order!r}")
    return num_blocks


def _even_split(total: int, parts: int) -> list[int]:
    """Shares that differ by at most one, the larger ones first."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def _guided(
    model: Callable[..., Any], tokens: Tensor, attention_mask: Tensor | None, p: int, cfg_scale: float, mask_id: int
) -> Float[Tensor, "b n v"]:
    """Logits of one network call, free to be written on."""
    if cfg_scale == 0:
        return _logits_of(model, tokens, attention_mask).clone()
    hidden = tokens.clone()
    hidden[:, :p] = mask_id
    mask = None if attention_mask is None else attention_mask.repeat(2, 1)
    told, untold = _logits_of(model, torch.cat([tokens, hidden]), mask).chunk(2)
    return untold + (cfg_scale + 1) * (told - untold)


def _logits_of(model: Callable[..., Any], tokens: Tensor, attention_mask: Tensor | None) -> Float[Tensor, "b n v"]:
    if attention_mask is None:
        found = model(tokens)
    elif isinstance(model, DecoderNet | DitNet):
        found = model(tokens, attention_mask != 0)
    else:
        found = model(tokens, attention_mask=attention_mask)
    return getattr(found, "logits", found)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Float[Tensor, "b n v"]:
    """Scores whose argmax is a draw from softmax(logits / temperature)."""
    if temperature == 0:
        return logits
    noise = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
    return logits.double().exp() / (-noise.log()) ** temperature


def _exclude(logits: Tensor, token: int) -> None:
    if token >= logits.shape[-1]:
        raise UsageError(f"the model has {logits.shape[-1]} tokens, so LLaDA's token {token} is none of them")
    logits[..., token] = -torch.inf
