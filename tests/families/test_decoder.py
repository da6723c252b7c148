"""Published causal models, small and without `transformers`: rows by hand, and texts as whole rows tell them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manta.errors import ConfigError, UsageError
from manta.families.autoregressive import NextToken
from manta.families.batching import to_batch
from manta.families.cached import CachedReader
from manta.families.decoder import DecoderConfig, DecoderLM, DecoderModel, PrefixedReader
from manta.families.events import GenerateOptions, Request
from manta.families.next_words import Line
from manta.families.observer import Observer
from manta.operators import AttentionConfig, LinearConfig, WindowedConfig
from manta.runtime import make_generator
from manta.text import Batch, Tokenizer
from tests.families.conftest import WORDS, random_weights

TOKENIZER = Tokenizer.train(list(WORDS) * 3, 512)
BEGIN, END = 7, 9


def make(**changes: Any) -> DecoderLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 16, "heads": 2, "depth": 1, "max_prompt": 30, "max_text": 48, "hidden": 24}
    shape |= {"vocab_size": TOKENIZER.vocab_size, "begin": BEGIN, "end": END, **changes}
    model = DecoderModel(DecoderConfig(**shape))
    random_weights(model)
    return DecoderLM(model, TOKENIZER)


@torch.no_grad()
def logits_of(model: DecoderModel, row: list[int]) -> Tensor:
    """Of every place of one whole row."""
    nothing = torch.zeros(1, 0, dtype=torch.long)
    return model(torch.tensor([row]), model.memory(nothing, nothing.sum(1), nothing.sum(1)))[0]


def likeliest(model: DecoderModel, prompt: list[int], words: tuple[int, ...]) -> tuple[int, ...]:
    """What a whole row tells at each place of a text."""
    told = logits_of(model, [model.begin, *prompt, *words]).argmax(-1)
    return tuple(told[len(prompt) : -1].tolist())


PROMPTS = ([20, 31], [40, 25, 33], [], [28, 27, 35], [30 + i for i in range(17)])
KINDS: dict[str, Any] = {
    "attention": AttentionConfig(),
    "windowed": WindowedConfig(radius=5),
    "kernel": LinearConfig(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_whole_rows_however_long_and_in_any_company(kind):
    lm = make(operator=KINDS[kind])
    rows = [Line(list(prompt), 0) for prompt in PROMPTS]
    with lm.endless():
        for most in (3, 20) if kind == "attention" else (14,):
            options = GenerateOptions(max_tokens=most)
            done = {e.index: e for e in lm.write_rows(rows, options, 2, Observer()) if e.kind == "done"}
            for index, row in enumerate(rows):
                assert done[index].tokens == likeliest(lm.model, row.prompt, done[index].tokens), (most, row)
                assert len(done[index].tokens) == most
            [alone] = [e for e in lm.write_rows(rows[1:2], options, 1, Observer()) if e.kind == "done"]
            assert alone.tokens == done[1].tokens
            if kind == "attention":
                assert alone.confidence == done[1].confidence, "to the last bit"


def test_a_text_has_what_its_prompt_leaves_of_the_row_and_is_bounded_where_nothing_is_asked():
    for prompt, room in (([20, 31, 40], 48), ([], 200)):
        lm = make(max_text=room)
        with lm.endless():
            [done] = [e for e in lm.write_rows([Line(prompt, 0)], GenerateOptions(), 1, Observer()) if e.kind == "done"]
        assert len(done.tokens) == min(room - len(prompt), 128)


def test_prompts_of_one_length_are_written_side_by_side():
    groups = make()._groups([[1], [], [2], [3, 4], [5]], 2)
    assert list(groups) == [[1], [0, 2], [4], [3]]


def test_places_are_read_behind_the_prompt_from_any_start():
    lm = make()
    prompts = [[20, 31, 40], [50, 22, 33], [21, 29, 38], [44, 43, 42]]
    reader = PrefixedReader(lm.model, prompts, 16)
    assert isinstance(reader, CachedReader) and reader.multiple == 4
    texts = [[11, 12, 13], [14, 15, 16], [17, 18, 19], [20, 21, 22]]
    with torch.no_grad():
        first = reader([[0, text[0]] for text in texts], [0] * 4).logits
        then = reader([text[1:] for text in texts], [2] * 4).logits
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        whole = logits_of(lm.model, [BEGIN, *prompt, *text])
        torch.testing.assert_close(torch.cat([first[row], then[row]]), whole[len(prompt) :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_the_words_of_a_text_and_its_end(kind):
    lm = make(operator=KINDS[kind], max_text=9)
    prompts, texts = [[20, 31], [], [41, 42, 43]], [[11, 12, 13], [14] * 9, [15]]
    nats = []
    for prompt, text in zip(prompts, texts, strict=True):
        row = [BEGIN, *prompt, *text, *([END] if len(text) < 9 else [])]
        told = logits_of(lm.model, row).log_softmax(-1)
        nats += [-told[place, row[place + 1]] for place in range(len(prompt), len(row) - 1)]
    loss = NextToken()(lm.model, to_batch(prompts, texts), make_generator(0))
    assert loss.count == len(nats) == 4 + 9 + 2
    torch.testing.assert_close(loss.total.detach(), torch.stack(nats).mean(), rtol=1e-4, atol=1e-5)
    assert lm.likelihoods(prompts[:1], texts[:1]) == pytest.approx([-float(sum(nats[:4]))], rel=1e-4)


def row_of(prompt: list[int], text: list[int]) -> Batch:
    """A batch of one, no wider than it has to be."""
    fields = {"prompt": prompt, "text": text}
    sizes = {f"{name}_lengths": torch.tensor([len(each)]) for name, each in fields.items()}
    wide = {name: torch.tensor([each], dtype=torch.long) for name, each in fields.items()}
    nothing = torch.tensor([0])
    return Batch(**wide, **sizes, tag=nothing, index=nothing)


@pytest.mark.parametrize(("tokens", "width"), [(15, 16), (16, 32)])
def test_rows_are_prompt_text_and_end_and_as_wide_as_they_have_to_be(tokens, width):
    model = make().model
    text = list(range(11, 11 + tokens - 2))
    given, target, asked = (part[0].tolist() for part in model.shifted(row_of([20, 31], text)))
    assert len(given) == width
    assert given[: tokens + 1] == [BEGIN, 20, 31, *text] and target[: tokens + 1] == [20, 31, *text, END]
    assert asked == [False] * 2 + [True] * (tokens - 1) + [False] * (width - tokens - 1)


def test_a_shape_says_what_is_built():
    model = make(hidden=0, vocab_size=30).model
    assert (
        model.trunk.blocks[0].get_submodule("mlp.down").in_features == 64
        and isinstance(model.head, nn.Linear)
        and model.head.bias is None
    )
    assert model.head.weight is not model.embedding.weight
    tied = make(tied=True).model
    x = torch.randn(3, 16)
    assert not isinstance(tied.head, nn.Linear)
    torch.testing.assert_close(tied.head(x), x @ tied.embedding.weight.T)
    style = DecoderConfig(norm="layer", eps=0.0, parallel=True, gated=False, mlp_bias=True).style
    assert (style.norm, style.eps, style.parallel, style.gated, style.mlp_bias) == ("layer", 0.0, True, False, True)
    assert model.memory(torch.zeros(2, 3, dtype=torch.long), *(torch.zeros(2).long(),) * 2).states.shape == (2, 0, 16)


def test_what_is_no_shape_and_what_nobody_can_do_is_refused():
    wrongs: tuple[dict[str, Any], ...] = (
        {"eps": -1e-9},
        {"eps": float("nan")},
        {"begin": 30},
        {"end": -1},
        {"end": 30},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            DecoderConfig(vocab_size=30, **wrong)
    assert DecoderConfig(vocab_size=30, begin=0, end=29).end == 29 and DecoderConfig(end=10**6).vocab_size is None

    class Watching(Observer):
        """Someone who watches."""

    with pytest.raises(UsageError, match="observer"):
        list(make().generate([Request(prompt="the")], GenerateOptions(), Watching()))
