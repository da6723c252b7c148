"""What published models are taught when they are trained on: the formulas of their authors, word by word."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.errors import ModelError
from manta.families.autoregressive import NextToken
from manta.families.batching import to_batch
from manta.families.decoder import DecoderConfig, DecoderModel
from manta.hub.foreign.chat import ChatFrame
from manta.hub.foreign.model import ForeignModel
from manta.hub.foreign.teaching import LEAST_SHARE, MaskedAnswers

from .published import write
from .test_foreign_writing import MASK, make

END = 51
PROMPTS = [[1, 2, 3], [4], [5, 6], []]
TEXTS = [[7, 8], [9, 10, 11, 12], [13], [14, 15, 16]]
masked = pytest.mark.parametrize("kind", ["llada", "Dream"])


def model_of(folder: Path, kind: str, **changes: Any) -> ForeignModel:
    model = replace(make(folder, kind), **changes)
    model.net.double()
    return model


def taught(
    model: ForeignModel, seed: int, longest: int = 64, prompts: Any = PROMPTS, texts: Any = TEXTS
) -> tuple[Any, torch.Tensor]:
    """The loss of a batch, and the rows that the net was shown."""
    shown, own = [], model.net.states
    model.net.states = lambda tokens: shown.append(tokens) or own(tokens)  # pyright: ignore
    try:
        objective, generator = MaskedAnswers(model, longest), torch.Generator().manual_seed(seed)
        loss = objective(model.net, to_batch(prompts, texts), generator)  # pyright: ignore[reportArgumentType]
    finally:
        del model.net.states
    return loss, shown[0]


def rows_of(before: list[int], after: list[int], width: int) -> list[tuple[list[int], int]]:
    """Rows of tokens, and where their answers begin, by hand."""
    rows = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        row = [*before, *prompt, *after] if prompt else []
        begin = len(row)
        row = [*row, *text]
        rows.append((row + [END] * (width - len(row)), begin))
    return rows


def by_hand(net: Callable[..., Any], kind: str, rows: list[tuple[list[int], int]], shown: Any, shares: Any) -> Any:
    """The loss, a row and a word at a time."""
    per_row, per_word = [], []
    for (row, begin), given, share in zip(rows, shown.tolist(), shares, strict=True):
        logits = net(torch.tensor([given]))[0]
        answer, told = len(row) - begin, torch.zeros((), dtype=torch.float64)
        for place, word in enumerate(row):
            if given[place] == MASK:
                read = max(0, place - 1) if kind == "Dream" else place
                nats = logits[read].exp().sum().log() - logits[read][word]
                told = told + nats / share
                per_word.append(nats / share)
        per_row.append(told / answer)
    return sum(per_word) / len(per_word) if kind == "Dream" else sum(per_row) / len(per_row)


@masked
@pytest.mark.parametrize("framed", [False, True])
def test_loss_and_gradients_are_the_authors_formula(kind, framed, tmp_path):
    frame = ChatFrame(start="<|begin|>", opening=" {} w40", closing="<|end|>", end="<|end|>", trimmed=False)
    model = model_of(tmp_path, kind, frame=frame if framed else None)
    assert model.tokenizer is not None
    before, after = (model.tokenizer.encode(part, special_names=True) for part in (frame.before, frame.after))
    before, after = (before, after) if framed else ([], [])
    width = 1 + max(len(p) + len(t) for p, t in zip(PROMPTS, TEXTS, strict=True)) + len(before) + len(after)
    rows = rows_of(before, after, width)
    for seed in range(3):
        loss, shown = taught(model, seed)
        shares = (1 - LEAST_SHARE) * torch.rand(4, generator=torch.Generator().manual_seed(seed)) + LEAST_SHARE
        expected = by_hand(model.net, kind, rows, shown, shares.tolist())
        torch.testing.assert_close(loss.total.double(), expected, rtol=1e-6, atol=1e-6)
        found, wanted = (torch.autograd.grad(each, list(model.net.parameters())) for each in (loss.total, expected))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        assert loss.count == (4 if kind == "llada" else int((shown == MASK).sum()))


@masked
def test_prompts_are_never_hidden_and_everything_of_an_answer_can_be(kind, tmp_path):
    model = model_of(tmp_path, kind)
    rows, hidden = rows_of([], [], 6), torch.zeros(4, 6)
    chances = []
    for seed in range(400):
        _, shown = taught(model, seed)
        clean = torch.tensor([row for row, _ in rows])
        assert bool(((shown == clean) | (shown == MASK)).all())
        hidden += shown == MASK
        chances.append(float((shown[3] == MASK).float().mean()))
    for (_, begin), counts in zip(rows, hidden, strict=True):
        assert counts[:begin].sum() == 0
        assert (counts[begin:] / 400 - 0.5).abs().max() < 0.12  # t is uniform: half of the words, ends among them
    assert torch.tensor(chances).std() > 0.25  # and a row's share is its own, not ½ of every row


@masked
def test_a_text_that_fills_the_row_has_no_end(kind, tmp_path):
    model = model_of(tmp_path, kind)
    tokens, answer = MaskedAnswers(model, 4).rows(to_batch([[], []], [[1, 2, 3, 4], [5]]))
    assert tokens.tolist() == [[1, 2, 3, 4], [5, END, END, END]] and bool(answer.all())


def test_dream_ends_with_its_end_and_fills_with_its_padding(tmp_path):
    write(tmp_path, "Dream", pad_token_id=50)
    model = replace(make(tmp_path / "other", "Dream"), pad_id=50)
    tokens, _ = MaskedAnswers(model, 64).rows(to_batch([[1], [2]], [[3, 4, 5], [6]]))
    assert tokens.tolist() == [[1, 3, 4, 5, END], [2, 6, END, 50, 50]]


@masked
def test_full_rows_are_as_long_as_they_can_be(kind, tmp_path):
    model = make(tmp_path, kind)
    tokens, answer = MaskedAnswers(model, 7, full=True).rows(to_batch([[1]], [[2, 3]]))
    assert tokens.tolist() == [[1, 2, 3, END, END, END, END]] and answer.tolist() == [[False] + [True] * 6]


@masked
def test_a_model_whose_texts_have_no_end_is_refused(kind, tmp_path):
    with pytest.raises(ModelError, match="names no eos_token_id"):
        MaskedAnswers(replace(make(tmp_path, kind), eos_id=None), 64)


def test_causal_models_are_told_the_answer_alone():
    torch.manual_seed(0)
    shape = DecoderConfig(
        vocab_size=30, dim=16, heads=2, depth=2, hidden=24, max_text=32, max_prompt=31, begin=28, end=29
    )
    net = DecoderModel(shape).double()
    batch = to_batch(PROMPTS, TEXTS)
    loss = NextToken()(net, batch, torch.Generator())
    nats = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        row = [28, *prompt, *text, 29]
        empty = torch.zeros(1, 0, dtype=torch.long)
        logits = net(torch.tensor([row[:-1]]), net.memory(empty, empty.sum(1), empty.sum(1)))[0]
        for place in range(len(prompt), len(row) - 1):
            nats.append(logits[place].exp().sum().log() - logits[place][row[place + 1]])
    expected = torch.stack(nats).mean()
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-6, atol=1e-6)
    named = {name: value for name, value in net.named_parameters()}
    found, wanted = (torch.autograd.grad(each, list(named.values())) for each in (loss.total, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
