"""Causal language models of the hub, read by `transformers`, as judges of texts."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import ModelError, RequestError
from manta.runtime import check_likelihood, resolve_device

HUB = "hf:"
"""What stands before the name of a model of the hub: a folder that is not there is never looked up."""
ROWS = 16
"""Texts of a batch."""


@dataclass(frozen=True)
class CausalModel:
    """A causal language model with its tokenizer, in full precision."""

    name: str
    """Name on the hub, or folder."""
    net: Any = field(repr=False)
    """The model of `transformers`."""
    tokenizer: Any = field(repr=False)
    """Its tokenizer."""

    @torch.no_grad()
    def nats(self, texts: list[str]) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
        """−log p of each text in nats, and how many of its tokens were given a probability.

        The first token has one where the tokenizer has a token that begins a text; no closing token is judged.

        Raises:
            RequestError: a text is longer than the model's window.
            ModelError: a likelihood is not finite.
        """
        nats, counts = [], []
        for begin in range(0, len(texts), ROWS):
            tokens, mask = self._padded(texts[begin : begin + ROWS])
            logits = self.net(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
            each = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none") * mask[:, 1:]
            nats.append(each.double().sum(1).cpu())
            counts.append(mask[:, 1:].sum(1).cpu())
        check_likelihood(torch.cat(nats))
        return torch.cat(nats), torch.cat(counts)

    @torch.no_grad()
    def features(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """The mean over each text's tokens of the last layer's hidden states.

        Raises:
            RequestError: a text is longer than the model's window.
        """
        found = []
        for begin in range(0, len(texts), ROWS):
            tokens, mask = self._padded(texts[begin : begin + ROWS])
            states = self.net(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
            weight = mask[..., None].to(states.dtype)
            found.append(((states * weight).sum(1) / weight.sum(1).clamp_min(1)).float().cpu())
        return torch.cat(found)

    def _padded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        first = self.tokenizer.bos_token_id
        rows = [([] if first is None else [first]) + row for row in rows]
        longest, window = max(map(len, rows)), getattr(self.net.config, "max_position_embeddings", None)
        if window is not None and longest > window:
            raise RequestError(f"a text has {longest} tokens, and the judge {self.name} reads {window}; cut the texts")
        # One column at least: a text without a token is a row of padding.
        width = max(1, longest)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return tokens.to(self.net.device), mask.to(self.net.device)


def load_causal(name: str | Path, *, device: str | None = None) -> CausalModel:
    """Load a causal language model by its name on the hub or from a folder; no code of the repository is run.

    Args:
        name: a folder, or `hf:` and a name of the hub: `hf:gpt2`, `hf:owner/name`.
        device: see `manta.runtime.resolve_device`.

    Raises:
        ModelError: transformers is not installed, or there is no such model, it has no safetensors, or they lack a
            weight.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(f'{name} needs transformers; install it with: pip install "manta[hf]"') from error
    source = str(name).removeprefix(HUB)
    if source == str(name) and not os.path.isdir(name):  # which answers for any text
        raise ModelError(f"no model at {name}; give a folder, or write {HUB}{name} for one of the hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers raises whatever it meets in a damaged folder
        reason = re.split(r"(?<=\.)\s|\n", str(error).strip(), maxsplit=1)[0]
        raise ModelError(f"{name} is no causal language model that transformers can load ({reason})") from error
    net, told = loaded
    # transformers draws at random what a folder lacks, and says so in its log alone.
    if drawn := sorted(told["missing_keys"]):
        raise ModelError(f"{name} has no {drawn[0]} ({len(drawn)} weights are missing); copy the model again")
    for key, value in net.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"{name} holds {key} with values that are not finite; copy it again")
    return CausalModel(str(name), net.to(resolve_device(device)).eval(), tokenizer)
