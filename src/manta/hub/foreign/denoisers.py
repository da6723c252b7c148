"""A published model as the decode loop sees it: logits of a text, its prompt out of sight."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.families.batching import padded_width
from manta.hub.foreign.decoder import DecoderNet, KeyValues

Logits = Callable[[Tensor, Tensor], Tensor]
"""`logits(tokens "b n", mask "b n") → "b n v"`, those at i being of token i."""


class RowDenoiser:
    """Every call computes everything, for a batch of rows of any lengths.

    Rows are padded at the right, so that a token has the same position alone and in any batch, to a width that leaves
    its logits the same to the last bit (`families.batching`).

    Args:
        logits: one network call.
        prompts: token ids before each text.
        mask: True on each row's canvas.
    """

    def __init__(self, logits: Logits, prompts: Sequence[Sequence[int]], mask: Bool[Tensor, "b n"]) -> None:
        (b, n), device = mask.shape, mask.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.logits = logits
        self.rows = torch.zeros(b, padded_width(int(lengths.max()) + n), dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            self.rows[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        self.place = lengths[:, None] + torch.arange(n, device=device)
        self.real = torch.arange(self.rows.shape[1], device=device) < (lengths + mask.sum(1))[:, None]

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`."""
        logits = self.logits(self.rows.scatter(1, self.place, tokens), self.real)
        place = self.place[:, start:stop, None]
        return logits.gather(1, place.expand(-1, -1, logits.shape[-1]))


class SpanOfRow:
    """A call computes a span of a single row and reads the other positions as they were last computed.

    Args:
        net: LLaDA's or Dream's.
        prompt: token ids before the text.
        shifted: the net predicts token i at position i − 1, which is then computed too.
        device: of the net.
    """

    def __init__(self, net: DecoderNet, prompt: Sequence[int], *, shifted: bool, device: torch.device) -> None:
        self.net, self.shift = net, int(shifted)
        self.prompt = torch.tensor([prompt], dtype=torch.long, device=device).view(1, len(prompt))
        self.kept = [KeyValues() for _ in net.blocks]

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`."""
        p, n = self.prompt.shape[1], tokens.shape[1]
        everything = (start, stop) == (0, n)
        begin, end = (0 if everything else max(0, p + start - self.shift)), p + stop
        row = torch.cat([self.prompt, tokens], 1)
        positions = torch.arange(begin, end, device=row.device)
        for kept in self.kept:
            kept.start = begin
        logits = self.net(row[:, begin:end], positions=positions, kept=self.kept)
        told = (torch.arange(p + start, end, device=row.device) - self.shift).clamp_min(0) - begin
        return logits[:, told].float()
