"""Texts never depend on their batch: which shapes a product may have, and how rows and widths are padded to them.

A text is written from decisions between nearly equal numbers, so its computation has to be the same to the last bit,
whichever requests are written beside it. The order in which a matrix product adds up depends on its shape. What was
measured of the CPU's kernels, float32 and bfloat16, 1 to 48 threads, is the rule kept here:

- a product of a *multiple of `ROWS`* rows gives each row what it gives it among any other number of rows; with fewer
  than four rows, or some left over, another kernel adds up in another order;
- a sum over positions, and attention to them, is not changed by masked positions at the end as long as the padded
  widths are *multiples of `WIDTH`*, a whole number of vector registers;
- the fused attention of a *single query* is the exception: it depends on where its operands lie in memory, so
  `operators.attention.attend` computes that in the open;
- norms, pointwise functions, softmax, sorting and reductions within a row depend on the row alone.

So prompts and canvases are padded to multiples of `WIDTH`, which makes the products over positions multiples of `ROWS`
at no further cost, and products over requests alone (a length, the next word) get padded rows. Random draws are made
for the largest canvas, each row's by its own generator, and equal confidences are ranked by position (stable sorts).
`benchmarks/batches.py` measures that it holds.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from manta.text import HUMAN, NULL, Batch

ROWS = 4
"""A product has a multiple of so many rows."""
WIDTH = 16
"""Padded widths are multiples of it, in positions."""
HEADING = 1
"""Elements of a memory before its prompt's (`nets.memory`)."""


def padded_width(longest: int, rate: int = 1) -> int:
    """The width on which rows of up to `longest` positions are written.

    Args:
        longest: positions of the longest row.
        rate: positions that share a latent; the latents, over which products go too, are a multiple of `ROWS`.
    """
    multiple = max(WIDTH, ROWS * rate)
    return -(-longest // multiple) * multiple


def padded_prompts(
    prompts: Sequence[Sequence[int]], device: torch.device | str
) -> tuple[Int64[Tensor, "b p"], Int64[Tensor, "b"]]:
    """Prompts side by side, as wide as makes their memory, heading included, a padded width; and their lengths.

    Args:
        prompts: tokens of each, none for no prompt.
        device: where they go.
    """
    width = padded_width(HEADING + max(map(len, prompts))) - HEADING
    rows = [[*prompt, *[NULL] * (width - len(prompt))] for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor([len(prompt) for prompt in prompts], device=device)


def to_batch(
    prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Batch:
    """Rows of tokens as a padded batch of human texts, whose likelihoods do not depend on the batch.

    Args:
        prompts: tokens of each prompt, none for no prompt.
        texts: tokens of each text, at least one.
        device: where the batch goes.
    """
    prompt, prompt_lengths = padded_prompts(prompts, device)
    width = padded_width(max(map(len, texts)) + 1) - 1  # an autoregressive model reads a beginning before the text
    return Batch(
        prompt=prompt,
        text=torch.tensor([[*row, *[NULL] * (width - len(row))] for row in texts]),
        tag=torch.full((len(texts),), HUMAN),
        index=torch.arange(len(texts)),
        prompt_lengths=prompt_lengths,
        text_lengths=torch.tensor([len(row) for row in texts]),
    ).to(device)


def padded_draws(draws: Shaped[Tensor, "b w *rest"], width: int) -> Shaped[Tensor, "b {width} *rest"]:
    """Draws made for the largest canvas, cut to a width or continued with zeros, which no one looks at.

    Args:
        draws: of each row, as many as the largest canvas has positions.
        width: of the canvases as padded.
    """
    missing = max(0, width - draws.shape[1])
    return F.pad(draws, [0, 0] * (draws.ndim - 2) + [0, missing])[:, :width]


def repeated_rows(rows: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "k *rest"]:
    """Rows, the last one repeated until their number is a multiple of `ROWS`."""
    missing = -len(rows) % ROWS
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def rowwise(net: Callable[[Tensor], Tensor], rows: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
    """`net(rows)` with each row independent, bit for bit, of the others; as it is where a gradient is asked for.

    Args:
        net: linear maps and pointwise functions.
        rows: one a request.
    """
    return net(rows) if torch.is_grad_enabled() else net(repeated_rows(rows))[: len(rows)]


def fresh_noise(
    generators: Sequence[torch.Generator], cells: int, like: Float[Tensor, "b m c"]
) -> Float[Tensor, "b m c"]:
    """Noise in the shape of `like`, drawn on a canvas of fixed size for each request."""
    draws = torch.stack([torch.randn(cells, like.shape[-1], generator=g) for g in generators])
    return padded_draws(draws, like.shape[1]).to(like)


def drawn_words(
    logits: Float[Tensor, "b n v"], temperature: float, generators: Sequence[torch.Generator], width: int
) -> Int64[Tensor, "b n"]:
    """The likeliest tokens, or draws from softmax(logits/temperature) by the Gumbel trick in float64."""
    if temperature == 0:
        return logits.argmax(-1)
    _, n, v = logits.shape
    uniform = torch.stack([torch.rand(width, v, generator=g, dtype=torch.float64) for g in generators])
    uniform = padded_draws(uniform, n)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    # Below the greatest logit, so that no temperature is too low for a number.
    below = logits.double() - logits.amax(-1, keepdim=True)
    return (below / temperature + gumbel.to(logits.device)).argmax(-1)
