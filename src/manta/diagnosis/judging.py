"""What a text is worth: to an oracle of its prompt, and to a judge of fluency."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.diagnosis.system import System
from manta.errors import DataError
from manta.families.autoregressive import AutoregressiveLM, log_likelihood
from manta.metrics import slot_errors
from manta.text import NULL, Batch, weather

Oracle = Callable[[str, str], float]
"""`oracle(prompt, text)`: how true the text is to its prompt, in [0, 1]."""


def oracle_of(prompts: Sequence[str | None]) -> Oracle | None:
    """The oracle that can read the prompts: of weather records, of meaning representations, or none."""
    for oracle in (_weather, _slots):
        try:
            for prompt in prompts:
                oracle(prompt or "", "")
        except DataError:
            continue
        return oracle
    return None


def _weather(prompt: str, text: str) -> float:
    """1 if the grammar derives the text for the record, else 0."""
    return float(weather.check(prompt, text).faithful)


def _slots(prompt: str, text: str) -> float:
    """Share of the slots without an error."""
    report = slot_errors(prompt, text)
    return max(0.0, 1 - report.errors / report.slots)


class Judgement:
    """Oracle and judge together.

    Args:
        oracle: of truth to the prompt; None: there is none.
        judge: an autoregressive model whose likelihood of a text, given its prompt, counts as fluency; None: none.
    """

    def __init__(self, oracle: Oracle | None, judge: AutoregressiveLM | None) -> None:
        self.oracle, self.judge = oracle, judge

    def of(self, system: System, tokens: Int64[Tensor, "b n"]) -> dict[str, Float[Tensor, "b"]]:
        """Worth of the texts of a system: `faithfulness` in [0, 1], `likelihood` in nats a token, as far as known."""
        texts = system.texts(tokens)
        prompts = [request.prompt or "" for request in system.requests]
        worth = {}
        if self.oracle is not None:
            values = [self.oracle(*pair) for pair in zip(prompts, texts, strict=True)]
            worth["faithfulness"] = torch.tensor(values, dtype=torch.float64)
        if self.judge is not None:
            worth["likelihood"] = _likelihood(self.judge, prompts, texts)
        return worth


def _likelihood(judge: AutoregressiveLM, prompts: list[str], texts: list[str]) -> Float[Tensor, "b"]:
    """Log-likelihood of each text given its prompt, nats a token with the end; nan where one is too long for the judge.

    The judge reads texts one by one, so that a value does not depend on the batch.
    """
    config, device = judge.model.config, judge.model.embedding.weight.device
    encode = partial(_row, judge.tokenizer, device)
    values = []
    for prompt, text in zip(prompts, texts, strict=True):
        (asked, asked_lengths), (said, said_lengths) = encode(prompt), encode(text)
        if int(asked_lengths) > config.max_prompt or int(said_lengths) > config.max_text:
            values.append(torch.nan)
            continue
        zero = torch.zeros_like(said_lengths)
        batch = Batch(
            prompt=asked, text=said, tag=zero, index=zero, prompt_lengths=asked_lengths, text_lengths=said_lengths
        )
        values.append(float(log_likelihood(judge.model, batch)) / (int(said_lengths) + 1))
    return torch.tensor(values, dtype=torch.float64)


def _row(tokenizer: Any, device: torch.device, text: str) -> tuple[Tensor, Tensor]:
    """Tokens "1 n", at least one wide, and their number."""
    tokens = tokenizer.encode(text) if text else []
    return torch.tensor([tokens or [NULL]], device=device), torch.tensor([len(tokens)], device=device)
