"""Texts never depend on their batch: random weights make near-ties frequent, so any difference in rounding shows."""

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from manta.families.autoregressive import log_likelihood
from manta.families.batching import (
    ROWS,
    WIDTH,
    drawn_words,
    fresh_noise,
    padded_draws,
    padded_prompts,
    padded_width,
    repeated_rows,
    rowwise,
    to_batch,
)
from manta.families.events import GenerateOptions, Request, Writer, finished
from manta.families.masked_objective import bound, length_nats
from manta.families.thinking import ThinkingConfig
from manta.hub.foreign.decoder import DecoderNet, DecoderShape
from manta.hub.foreign.model import ForeignModel
from manta.masked import DECODERS
from manta.operators import CAUSAL, KINDS
from manta.operators.attention import attend
from manta.runtime import make_generator
from manta.text.foreign import ForeignTokenizer

from .conftest import WORDS, make_aligned, make_ar, make_lm, make_masked, random_weights

NUM = 14
SIZES = (2, 7, 64)


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)], autouse=True)
def threads(request):
    """Rows are shared out among threads, so what a kernel sees of a batch depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def requests_of(num: int = NUM) -> list[Request]:
    draw, words = random.Random(0), WORDS[0].split()
    prompts = [" ".join(draw.sample(words, draw.randint(1, 6))) if draw.random() < 0.9 else None for _ in range(num)]
    return [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]


def assert_independent(lm: Writer, **options: Any) -> None:
    """Each text alone, and among others in random order."""
    requests, draw = requests_of(), random.Random(1)

    def written(some: list[Request], size: int) -> list[tuple[Any, ...]]:
        done = finished(lm.generate(some, GenerateOptions(**options), batch_size=size))
        return [(e.tokens, repr(e.confidence), e.nfe) for e in sorted(done, key=lambda e: e.index)]

    alone = [written([request], 1)[0] for request in requests]
    assert len({tokens for tokens, *_ in alone}) > NUM // 4, "texts that are all alike would show nothing"
    for size in SIZES:
        order = draw.sample(range(NUM), NUM)
        assert written([requests[i] for i in order], size) == [alone[i] for i in order], f"batches of {size}"


@pytest.mark.parametrize(("kind", "rate"), [("latent", 4), ("latent", 8), ("embedding", 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"style": "consensus", "guidance_scale": 2.0}, {"solver": "renoise", "temperature": 1.0}, {"rounds": 1}],
)
def test_a_manta_text_does_not_depend_on_its_batch(kind, rate, options):
    assert_independent(make_lm(kind, rate), num_steps=7, **options)


@pytest.mark.parametrize("style", ["diverse", "consensus"])
@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_an_adaptive_condition_leaves_a_text_to_itself(kind, style):
    assert_independent(make_lm(kind, bits=3), num_steps=5, style=style)


@pytest.mark.parametrize("decoder", [kind for kind in DECODERS if kind not in ("doubt", "learned")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_masked_text_does_not_depend_on_its_batch(decoder, temperature):
    assert_independent(make_masked(), num_steps=6, decoder=decoder, temperature=temperature)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("options", [{"decoder": "doubt"}, {"think": 2}])
def test_slots_of_thought_leave_a_text_to_itself(slots, options):
    assert_independent(
        make_masked(thinking=ThinkingConfig(carry=True, slots=slots, doubts=True)), num_steps=6, **options
    )


@pytest.mark.parametrize("options", [{"num_steps": 1}, {"num_steps": 6}, {"num_steps": 3, "temperature": 1.0}])
def test_an_aligned_text_does_not_depend_on_its_batch(options):
    assert_independent(make_aligned(), **options)


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family, kinds in (("masked", KINDS), ("ar", CAUSAL)) for kind in kinds if kind != "attention"],
)
def test_no_operator_makes_a_text_depend_on_its_batch(family, kind):
    if family == "ar":
        assert_independent(make_ar(operator=KINDS[kind]()))
    else:
        assert_independent(make_masked(operator=KINDS[kind]()), num_steps=6)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9}])
def test_an_autoregressive_text_does_not_depend_on_its_batch(options):
    assert_independent(make_ar(), **options)


def published(kv_heads: int, dtype: torch.dtype) -> ForeignModel:
    words = WORDS[0].split()
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *sorted(set(words))])}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    size = plain.get_vocab_size()
    shape = DecoderShape(
        vocab_size=size + 2,
        dim=32,
        depth=2,
        heads=4,
        kv_heads=kv_heads,
        hidden=48,
        eps=1e-5,
        rotary_base=1e4,
        qkv_bias=True,
    )
    torch.manual_seed(0)
    net = DecoderNet(shape)
    random_weights(net)
    return ForeignModel(
        family="llada",
        net=net.to(dtype).eval(),
        tokenizer=ForeignTokenizer(plain.to_str()),
        vocab_size=size + 2,
        max_length=64,
        mask_id=size + 1,
        eos_id=size,
        pad_id=None,
        shifted=False,
    )


@pytest.mark.parametrize(("kv_heads", "dtype"), [(4, torch.float32), (2, torch.float32), (2, torch.bfloat16)])
def test_a_published_models_text_does_not_depend_on_its_batch(kv_heads, dtype):
    assert_independent(published(kv_heads, dtype), num_steps=5, max_tokens=13, decoder="confidence")


@pytest.mark.parametrize("family", ["masked", "ar"])
def test_a_likelihood_does_not_depend_on_its_batch(family):
    draw, masked, ar = random.Random(0), make_masked().model, make_ar().model

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randint(4, 300) for _ in range(draw.randint(least, most))]

    pairs = [(tokens(0, 12), tokens(1, 24)) for _ in range(NUM)]

    def nats(rows: list[int]) -> list[float]:
        batch = to_batch([pairs[i][0] for i in rows], [pairs[i][1] for i in rows])
        if family == "ar":
            return log_likelihood(ar, batch).tolist()
        found = bound(masked, batch, [make_generator(i) for i in rows], num_samples=4)
        return (found.nats + length_nats(masked, batch)).tolist()

    alone = [nats([i])[0] for i in range(NUM)]
    for size in SIZES:
        order = draw.sample(range(NUM), NUM)
        found = [value for begin in range(0, NUM, size) for value in nats(order[begin : begin + size])]
        assert found == [alone[i] for i in order], f"batches of {size}"


def test_products_of_padded_rows_are_those_of_any_number_of_rows():
    generator = torch.Generator().manual_seed(0)
    net, rows = torch.nn.Linear(48, 40), torch.randn(67, 48, generator=generator)
    with torch.no_grad():
        whole = rowwise(net, rows)
        for count in range(1, 67):
            torch.testing.assert_close(rowwise(net, rows[:count]), whole[:count], atol=0, rtol=0)


def test_a_lone_query_is_attended_like_any_other_and_apart_from_its_batch():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, 2, n, 24, generator=generator) for n in (1, 40, 40))
    scale, bias = torch.full((2, 1, 1), 0.2), torch.where(torch.arange(40) < 29, 0.0, -1e4)
    found = attend(q, k, v, scale, bias)
    expected = F.scaled_dot_product_attention(q, k[:, :, :29], v[:, :, :29], scale=0.2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for rows in (1, 2, 5):
        assert torch.equal(attend(q[:rows], k[:rows].clone(), v[:rows].clone(), scale, bias), found[:rows])
        assert torch.equal(attend(q[:rows], k[:rows, :, :32], v[:rows, :, :32], scale, bias[:32]), found[:rows])


def test_shapes_are_padded_to_what_the_rule_asks_for():
    assert [padded_width(n) for n in (1, WIDTH, WIDTH + 1)] == [WIDTH, WIDTH, 2 * WIDTH]
    assert padded_width(1, 8) // 8 % ROWS == 0
    prompt, lengths = padded_prompts([[5, 6], []], "cpu")
    assert prompt.shape == (2, WIDTH - 1) and lengths.tolist() == [2, 0]
    draws = torch.ones(2, 5, 3)
    assert padded_draws(draws, 4).shape == (2, 4, 3) and padded_draws(draws, 7)[:, 5:].sum() == 0
    rows: Tensor = repeated_rows(torch.arange(5.0)[:, None])
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


def test_words_are_drawn_by_the_gumbel_trick_in_float64_for_the_largest_canvas():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]]).expand(2, 3, 4) * torch.arange(1, 4)[None, :, None]
    found = drawn_words(logits, 0.7, [make_generator(seed) for seed in (3, 4)], 5)
    for row, seed in enumerate((3, 4)):
        uniform = torch.rand(5, 4, generator=make_generator(seed), dtype=torch.float64)[:3]
        expected = (logits[row].double() / 0.7 - torch.log(-torch.log(uniform))).argmax(-1)
        assert found[row].tolist() == expected.tolist()
    assert drawn_words(logits, 0.0, (), 5).tolist() == [[1, 1, 1]] * 2


def test_draws_at_the_ends_of_their_range_are_numbers(monkeypatch):
    """A uniform draw of 0 is the worst word there is, and the next below 1 the best."""
    draws = torch.tensor([[0.0, 1 - 2**-53, 0.0, 0.0]], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: draws)
    for temperature in (0.5, 100.0):
        assert drawn_words(torch.zeros(1, 1, 4), temperature, [make_generator(0)], 1).tolist() == [[1]]


def test_fresh_noise_is_drawn_on_the_largest_canvas():
    like = torch.zeros(2, 4, 3)
    found = fresh_noise([make_generator(seed) for seed in (3, 4)], 6, like)
    for row, seed in enumerate((3, 4)):
        assert torch.equal(found[row], torch.randn(6, 3, generator=make_generator(seed))[:4])
    longer = fresh_noise([make_generator(3)], 2, like[:1])
    assert torch.equal(longer[0, :2], torch.randn(2, 3, generator=make_generator(3))) and not longer[0, 2:].any()


def test_rows_stay_as_they_are_where_a_gradient_is_asked_for():
    seen = []
    rows = torch.ones(5, 2)
    rowwise(lambda given: seen.append(len(given)) or given, rows)
    with torch.no_grad():
        assert len(rowwise(lambda given: seen.append(len(given)) or given, rows)) == 5
    assert seen == [5, 8]
    assert repeated_rows(rows[:4]) is not None and len(repeated_rows(rows[:4])) == 4
