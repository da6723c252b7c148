"""What published masked models are taught when they are trained on: words hidden in the answer alone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.errors import ModelError
from manta.hub.foreign.decoder import DecoderNet
from manta.hub.foreign.model import ForeignModel
from manta.text import Batch
from manta.types import Loss

LEAST_SHARE = 1e-3
"""Least chance of a word of an answer to be hidden: LLaDA's; Dream's code has none, and weighs by up to infinity."""


class MaskedAnswers:
    """How a LLaDA or a Dream is fine-tuned: the prompt is given whole, words of the answer are hidden and told.

        t_i ~ U(0, 1),  p_i = (1 − ε) t_i + ε,  each word of answer i is hidden with chance p_i
        LLaDA:  1/b Σ_i 1/n_i Σ_hidden −log p_θ(word | rest) / p_i
        Dream:  1/m Σ_i Σ_hidden −log p_θ(word | rest) / p_i,   m the hidden words of the batch

    Rows are padded at the right with the end token to one more than the longest, as far as `longest` allows; these ends
    belong to the answer: they are attended to, hidden and told like words, and n_i counts them. Nothing is kept out of
    attention. Dream tells word i at the position before it. A text that fills the whole row has no end.

    Args:
        model: tells the layout, its tokens, and the frame around a prompt.
        longest: most tokens of a row.
        full: pad every row to `longest`, and not to what its batch needs.

    Raises:
        ModelError: the checkpoint has no end of a text.

    Source: Nie et al., LLaDA, arXiv 2502.09992, algorithm 2, appendix B.1 and the authors' guidelines; Ye et al.,
        Dream, arXiv 2508.15487, and the default settings of the authors' fine-tuning code (a weight of 1/t).
    """

    def __init__(self, model: ForeignModel, longest: int, *, full: bool = False) -> None:
        if model.eos_id is None:
            raise ModelError("the checkpoint's config.json names no eos_token_id, and an answer needs an end")
        self.family, self.shifted, self.mask_id = model.family, model.shifted, model.mask_id
        self.end_id, self.pad_id = model.eos_id, model.eos_id if model.pad_id is None else model.pad_id
        self.longest, self.full = longest, full
        self.before, self.after = frame_of(model)

    def rows(self, batch: Batch) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Rows of tokens, and where their answers are, ends included.

        Args:
            batch: prompts without their frame, and texts.
        """
        device = batch.text.device
        prompts, texts = batch.prompt_lengths.tolist(), batch.text_lengths.tolist()
        before, after = (torch.tensor(part, dtype=torch.long, device=device) for part in (self.before, self.after))
        rows = []
        for row, (p, n) in enumerate(zip(prompts, texts, strict=True)):
            prompt = [before, batch.prompt[row, :p], after] if p else []
            rows.append((torch.cat([*prompt, batch.text[row, :n]]), n))
        width = self.longest if self.full else min(1 + max(len(row) for row, _ in rows), self.longest)
        tokens = torch.full((len(rows), width), self.pad_id, dtype=torch.long, device=device)
        answer = torch.zeros_like(tokens, dtype=torch.bool)
        for index, (row, n) in enumerate(rows):
            tokens[index, : len(row)] = row
            tokens[index, len(row) : len(row) + 1] = self.end_id
            answer[index, len(row) - n :] = True
        return tokens, answer

    def __call__(self, net: DecoderNet, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with part nats (a hidden word)."""
        tokens, answer = self.rows(batch)
        b, n = tokens.shape
        share = (1 - LEAST_SHARE) * torch.rand(b, generator=generator) + LEAST_SHARE
        hidden = (torch.rand(b, n, generator=generator) < share[:, None]).to(tokens.device) & answer
        share = share.to(tokens.device)[:, None].expand(b, n)
        states = net.states(tokens.masked_fill(hidden, self.mask_id))
        if self.shifted:
            states = torch.cat([states[:, :1], states[:, :-1]], 1)
        nats = F.cross_entropy(net.head(states[hidden]).float(), tokens[hidden], reduction="none")
        count = int(hidden.sum())
        if self.family == "Dream":
            total = (nats / share[hidden]).sum() / max(1, count)
            return Loss(total, {"nats": nats.detach().mean() if count else total.detach()}, max(1, count))
        lengths = answer.sum(1, keepdim=True).expand(b, n)
        total = (nats / (share * lengths)[hidden]).sum() / b
        return Loss(total, {"nats": nats.detach().mean() if count else total.detach()}, b)


def frame_of(model: ForeignModel) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens that a chat's frame puts before and after a prompt; none where the model has no frame."""
    if model.frame is None or model.tokenizer is None:
        return (), ()
    encode = model.tokenizer.encode
    return encode(model.frame.before, special_names=True), encode(model.frame.after, special_names=True)
