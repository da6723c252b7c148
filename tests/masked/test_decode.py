"""Masked decoding: every step keeps its invariants, deferring beats blocks where context is cut, caches are honest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.errors import UsageError
from manta.masked import (
    DECODERS,
    BlockConfig,
    CacheConfig,
    Canvas,
    ConfidenceConfig,
    DeferredConfig,
    FirstHittingConfig,
    RemaskConfig,
    ThresholdConfig,
    WordSampler,
    decode,
)
from manta.masked.decode import _Span

MASK, END, VOCAB = 1, 0, 12


def generators(rows: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(rows)]


class Table:
    """A denoiser whose logits are a fixed function of position and of how many words stand nearby."""

    def __init__(self, n: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.base = 3 * torch.randn(n, VOCAB, generator=generator)
        self.mix = torch.randn(VOCAB, VOCAB, generator=generator)

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        known = torch.nn.functional.one_hot(tokens, VOCAB).float() * (tokens != MASK)[..., None]
        near = known.cumsum(1) - known + known.flip(1).cumsum(1).flip(1) - known
        return (self.base + 0.3 * near @ self.mix)[:, start:stop]


def run(config, tokens: Tensor, *, seed: int = 0, temperature: float = 0.0, denoiser=None, **settings_):
    n = tokens.shape[1]
    sampler = WordSampler(temperature, generators(len(tokens), seed), n)
    denoiser = denoiser or Table(n)
    policy = config.build()
    return [
        (canvas.tokens.clone(), canvas.masked.clone(), canvas.calls, canvas.processed)
        for canvas in decode(denoiser, tokens, policy, mask_id=MASK, sampler=sampler, **settings_)
    ]


ALL = {
    "deferred": DeferredConfig(window_masked=4, window_width=9, threshold=0.6),
    "deferred, rounds": DeferredConfig(window_masked=4, window_width=9, threshold=0.6, rounds=2),
    "block": BlockConfig(block_length=4, threshold=0.6),
    "threshold": ThresholdConfig(threshold=0.6),
    "factor": ThresholdConfig(factor=0.8),
    "confidence": ConfidenceConfig(num_steps=5),
    "confidence, blocks": ConfidenceConfig(num_steps=10, block_length=4),
    "random": ConfidenceConfig(num_steps=5, order="random"),
    "remask": RemaskConfig(num_steps=9, eta=0.3),
    "remask, loop": RemaskConfig(num_steps=12, schedule="loop", eta=0.2),
    "first hitting": FirstHittingConfig(),
}


@st.composite
def canvases(draw) -> Tensor:
    n = draw(st.integers(1, 20))
    rows = draw(st.integers(1, 3))
    words = st.sampled_from([MASK, MASK, MASK, 2, 5, 11])
    return torch.tensor(draw(st.lists(st.lists(words, min_size=n, max_size=n), min_size=rows, max_size=rows)))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(tokens=canvases(), seed=st.integers(0, 99))
def test_every_call_writes_something_and_what_is_given_stays(name, tokens, seed):
    free = tokens == MASK
    before = free
    for words, masked, calls, _ in run(ALL[name], tokens, seed=seed):
        assert torch.equal(words[~free], tokens[~free])
        assert torch.equal(words == MASK, masked)
        assert not (masked & ~free).any()
        if "remask" not in name and "rounds" not in name:
            assert not (masked & ~before).any(), "a committed word is not taken back"
            assert ((before & ~masked).any(1) | ~before.any(1)).all(), "at least one word a row and call"
            assert calls <= free.sum(1).max()
        before = masked
    assert not before.any() or not free.any()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_written_the_same_alone_and_in_a_batch(name, temperature):
    generator = torch.Generator().manual_seed(4)
    tokens = torch.where(torch.rand(5, 14, generator=generator) < 0.7, MASK, 6)
    tokens[3] = MASK
    together = run(ALL[name], tokens, temperature=temperature)[-1][0]
    for row in range(len(tokens)):
        alone = run(ALL[name], tokens[row : row + 1], seed=row, temperature=temperature)[-1][0]
        assert torch.equal(together[row], alone[0])


@settings(max_examples=60, deadline=None)
@given(tokens=canvases(), masked=st.integers(1, 6), width=st.integers(1, 12))
def test_the_deferred_window_slides_with_the_leftmost_masked_word(tokens, masked, width):
    policy = DeferredConfig(window_masked=masked, window_width=width).build()
    seen = []
    span = policy.span

    def spy(canvas, open_):
        left, right = span(canvas, open_)
        seen.append((open_.clone(), left, right))
        return left, right

    policy.span = spy  # pyright: ignore[reportAttributeAccessIssue]
    sampler = WordSampler()
    list(decode(Table(tokens.shape[1]), tokens, policy, mask_id=MASK, sampler=sampler))
    for open_, left, right in seen:
        for row in range(len(open_)):
            places = open_[row].nonzero()[:, 0].tolist()
            if not places:
                continue
            low, high = int(left[row]), int(right[row])
            assert low == places[0]
            inside = [place for place in places if low <= place < high]
            assert 1 <= len(inside) <= masked
            assert high - low <= width
            longest = max(
                end
                for end in range(low, min(low + width, tokens.shape[1]) + 1)
                if sum(low <= place < end for place in places) <= masked
            )
            assert high == longest


def test_a_window_of_one_word_is_left_to_right():
    tokens = torch.full((1, 10), MASK)
    steps = run(DeferredConfig(window_masked=1), tokens)
    assert len(steps) == 10
    for index, (_, masked, calls, _) in enumerate(steps):
        assert calls == index + 1
        assert masked[0].tolist() == [False] * (index + 1) + [True] * (9 - index)


def test_a_threshold_of_zero_clears_the_window_at_once():
    tokens = torch.full((1, 12), MASK)
    assert len(run(DeferredConfig(window_masked=4, threshold=0.0), tokens)) == 3
    assert len(run(BlockConfig(block_length=6, threshold=0.0), tokens)) == 2
    assert len(run(ThresholdConfig(threshold=0.0), tokens)) == 1


def test_a_wide_window_is_threshold_decoding_and_a_whole_block_too():
    tokens = torch.full((2, 12), MASK)
    one = run(ThresholdConfig(threshold=0.5), tokens)
    two = run(DeferredConfig(threshold=0.5, window_masked=99, window_width=99), tokens)
    three = run(BlockConfig(threshold=0.5, block_length=12), tokens)
    assert [step[0].tolist() for step in one] == [step[0].tolist() for step in two] == [s[0].tolist() for s in three]


def test_confidence_spends_its_steps_evenly_with_the_remainder_first():
    tokens = torch.full((1, 10), MASK)
    counts = [10 - int(masked.sum()) for _, masked, *_ in run(ConfidenceConfig(num_steps=4), tokens)]
    assert counts == [3, 6, 8, 10]
    blocks = [
        12 - int(m.sum())
        for _, m, *_ in run(ConfidenceConfig(num_steps=6, block_length=4), tokens.new_full((1, 12), MASK))
    ]
    assert blocks == [2, 4, 6, 8, 10, 12]


def test_first_hitting_takes_every_order_equally_often():
    tokens = torch.full((600, 3), MASK)
    first = run(FirstHittingConfig(), tokens)[0][1]
    counts = (~first).sum(0)
    assert counts.sum() == 600
    assert (counts - 200).abs().max() < 60


@pytest.mark.parametrize("eta", [0.0, 0.05])
def test_remasking_keeps_the_share_of_masked_words_on_schedule(eta):
    tokens = torch.full((400, 24), MASK)
    steps = run(RemaskConfig(num_steps=8, eta=eta), tokens)
    for index, (_, masked, *_) in enumerate(steps):
        assert float(masked.float().mean()) == pytest.approx(1 - (index + 1) / 8, abs=0.03)
    assert len(steps) == 8


def test_remasking_loops_at_constant_noise():
    steps = run(RemaskConfig(num_steps=20, schedule="loop", eta=0.2), torch.full((300, 24), MASK))
    shares = [float(masked.float().mean()) for _, masked, *_ in steps]
    assert shares[9:17] == pytest.approx([0.1] * 8, abs=0.03)
    assert shares[-1] == 0


class Boundary:
    """Words that can be told only when the next m are known: their argmax is wrong, and unsure, until then."""

    def __init__(self, n: int, seed: int, m: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.truth = torch.randint(2, VOCAB, (n,), generator=generator)
        self.hard = torch.rand(n, generator=generator) < 0.3
        self.m = m

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        known = (tokens[0] != MASK).long()
        chance = torch.full((len(self.truth), VOCAB), 1e-4)
        for place, word in enumerate(self.truth.tolist()):
            following = known[place + 1 : place + 1 + self.m]
            sure = not self.hard[place] or bool(following.all())
            wrong = 2 + (word - 1) % (VOCAB - 2)
            chance[place, word if sure else wrong] = 0.99 if sure else 0.2
            if not sure:
                chance[place, [v for v in range(2, VOCAB) if v not in (word, wrong)]] = 0.08
        return chance.log()[None, start:stop]


@pytest.mark.parametrize(("m", "reached"), [(1, 0.999), (2, 0.99)])
def test_deferring_mends_the_words_that_a_block_cuts_from_their_context(m, reached):
    scores = {"block": [], "deferred": []}
    for seed in range(60):
        denoiser = Boundary(64, seed, m)
        tokens = torch.full((1, 64), MASK)
        for config in (
            BlockConfig(block_length=8, threshold=0.9),
            DeferredConfig(window_masked=8, window_width=32, threshold=0.9),
        ):
            words, _, calls, _ = run(config, tokens, denoiser=denoiser)[-1]
            scores[config.kind].append((float((words[0] == denoiser.truth).float().mean()), calls))
    (block, block_calls), (deferred, deferred_calls) = (
        [sum(column) / 60 for column in zip(*scores[kind], strict=True)] for kind in ("block", "deferred")
    )
    assert deferred >= reached
    assert block <= 0.96
    assert deferred_calls < block_calls


def test_taking_words_back_repairs_an_early_mistake():
    """A word that is told wrong until its neighbours stand: nothing but taking it back mends it."""

    class Misled:
        def __call__(self, tokens, start, stop):
            chance = torch.full((1, 6, VOCAB), 1e-3)
            for place in range(6):
                chance[0, place, 3 if (tokens[0] != MASK).sum() >= 3 or place else 4] = 0.9
            chance[0, 0, 3 if (tokens[0] != MASK).sum() >= 3 else 4] = 0.5
            return chance.log()[:, start:stop]

    tokens = torch.full((1, 6), MASK)
    plain = run(DeferredConfig(window_masked=1), tokens, denoiser=Misled())[-1][0]
    mended = run(DeferredConfig(window_masked=1, rounds=1, share=0.2), tokens, denoiser=Misled())[-1][0]
    assert plain[0, 0] == 4
    assert mended[0].tolist() == [3] * 6


def test_an_end_ends_its_row_or_waits_for_the_words():
    class Ender:
        def __call__(self, tokens, start, stop):
            chance = torch.full((1, 6, VOCAB), 0.05)
            chance[0, :, 5] = 0.6
            chance[0, 3:, END] = 20.0
            return chance.log()[:, start:stop]

    tokens = torch.full((1, 6), MASK)
    stopped = run(ThresholdConfig(threshold=0.9), tokens, denoiser=Ender(), end_id=END)
    assert stopped[0][0][0].tolist() == [MASK, MASK, MASK, END, END, END]
    waiting = run(ThresholdConfig(threshold=0.9), tokens, denoiser=Ender(), end_id=END, ends_last=True)
    assert waiting[-1][0][0].tolist() == [5, 5, 5, END, END, END]
    assert (waiting[0][0][0] != END).all()


@pytest.mark.parametrize("name", [n for n in ALL if n != "remask" and n != "remask, loop"])
@pytest.mark.parametrize("budget", [1, 3, 6])
def test_a_budget_of_calls_is_kept(name, budget):
    steps = run(ALL[name], torch.full((2, 15), MASK), max_calls=budget)
    assert steps[-1][2] <= budget
    assert not steps[-1][1].any()


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("budget", [2, 3, 5])
def test_a_budget_is_kept_under_a_cache_that_computes_less(kind, budget):
    """What lies beyond the span could not be committed in the last call, so that one computes everything."""
    steps = run(ALL["deferred"], torch.full((1, 40), MASK), max_calls=budget, cache=CacheConfig(kind=kind, refresh=99))
    assert steps[-1][2] <= budget
    assert not steps[-1][1].any()


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["deferred", "block", "confidence, blocks", "threshold"])
def test_a_cache_computes_the_window_and_less_than_everything(kind, name):
    """The table is local to its words, so every computed span is right, and what was computed is what was asked for."""
    tokens = torch.full((1, 20), MASK)
    spans = []
    table = Table(20)

    def spy(words, start, stop):
        spans.append((start, stop))
        return table(words, start, stop)

    exact = run(ALL[name], tokens)
    cached = run(ALL[name], tokens, denoiser=spy, cache=CacheConfig(kind=kind, refresh=8, delay=2))
    assert cached[-1][0].tolist() == exact[-1][0].tolist()
    assert cached[-1][3] == sum(stop - start for start, stop in spans) <= exact[-1][3]
    assert spans[0] == (0, 20)
    if name != "threshold":
        assert cached[-1][3] < exact[-1][3]
    if kind == "prefix":
        assert all(stop == 20 for _, stop in spans)


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_a_refresh_of_zero_computes_everything(kind):
    tokens = torch.full((1, 20), MASK)
    exact = run(ALL["deferred"], tokens)
    cached = run(ALL["deferred"], tokens, cache=CacheConfig(kind=kind, refresh=0))
    assert [(s[0].tolist(), s[3]) for s in exact] == [(s[0].tolist(), s[3]) for s in cached]


def test_what_cannot_be_decoded_is_refused():
    tokens = torch.full((2, 4), MASK)
    with pytest.raises(UsageError, match="one row at a time"):
        run(ALL["deferred"], tokens, cache=CacheConfig(kind="dual"))
    with pytest.raises(UsageError, match="at least 1"):
        run(ALL["deferred"], tokens, max_calls=0)
    with pytest.raises(UsageError, match="generator"):
        sampler = WordSampler()
        list(decode(Table(4), tokens, FirstHittingConfig().build(), mask_id=MASK, sampler=sampler))


def test_the_table_of_decoders_names_each_by_its_kind():
    assert {kind: config().kind for kind, config in DECODERS.items()} == {kind: kind for kind in DECODERS}


@pytest.mark.parametrize("confidence", ["probability", "margin", "entropy"])
def test_a_surer_position_has_more_confidence(confidence):
    logits = torch.tensor([[[5.0, 0.0, 0.0], [1.0, 0.8, 0.0], [0.1, 0.0, 0.0]]])
    _, sure = WordSampler(confidence=confidence)(logits)
    assert sure[0].tolist() == sorted(sure[0].tolist(), reverse=True)


def test_words_are_drawn_from_the_softmax():
    logits = torch.tensor([2.0, 0.0, 1.0]).expand(1, 4000, 3)
    word, _ = WordSampler(0.5, generators(1), 4000)(logits)
    share = torch.bincount(word[0], minlength=3) / 4000
    torch.testing.assert_close(share, (logits[0, 0] / 0.5).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_words_and_places_are_drawn_from_the_rows_generators_alone(name, no_global_draws):
    table = Table(8)
    with no_global_draws():
        run(ALL[name], torch.full((2, 8), MASK), temperature=1.0, denoiser=table)


WHOLE = (0, 10)


@pytest.mark.parametrize(
    ("kind", "refresh", "on_move", "calls", "spans"),
    [
        # Each call: masked words, and where its window begins and ends.
        ("dual", 99, False, [(10, 0, 3), (9, 1, 4), (8, 4, 6), (6, 5, 9)], [WHOLE, (0, 5), (0, 7), (3, 10)]),
        ("prefix", 99, False, [(10, 0, 3), (9, 1, 4), (8, 4, 6), (6, 5, 9)], [WHOLE, (0, 10), (0, 10), (3, 10)]),
        ("dual", 99, True, [(10, 0, 3), (9, 0, 3), (8, 3, 6), (7, 3, 6)], [WHOLE, (0, 4), WHOLE, (2, 7)]),
        ("dual", 99, False, [(10, 4, 6), (10, 4, 6), (9, 4, 6)], [WHOLE, WHOLE, (3, 7)]),
        ("dual", 99, False, [(9, 4, 6), (8, 4, 6), (10, 4, 6)], [WHOLE, (3, 7), WHOLE]),
        ("dual", 2, False, [(10, 4, 6), (9, 4, 6), (8, 4, 6), (7, 4, 6)], [WHOLE, (3, 7), WHOLE, (3, 7)]),
        ("none", 99, False, [(10, 4, 6), (9, 4, 6)], [WHOLE, WHOLE]),
    ],
)
def test_everything_is_computed_when_it_is_due_and_else_the_window(kind, refresh, on_move, calls, spans):
    span = _Span(CacheConfig(kind=kind, refresh=refresh, delay=1), on_move)
    found = []
    for count, left, right in calls:
        masked = torch.arange(10)[None] < count
        canvas = Canvas(masked.long(), torch.ones(1, 10).bool(), masked, torch.zeros(1, 10, dtype=torch.float64))
        found.append(span.of(canvas, torch.tensor([left]), torch.tensor([right])))
    assert found == spans


@pytest.mark.parametrize(
    ("config", "whole"),
    [
        (BlockConfig(block_length=4, threshold=0.0), 5),
        (ConfidenceConfig(num_steps=5, block_length=4), 5),
        (DeferredConfig(window_masked=4, window_width=4, threshold=0.0), 1),
    ],
)
def test_a_new_block_is_computed_with_everything_and_a_window_that_slides_is_not(config, whole):
    spans, table = [], Table(20)

    def spy(words, start, stop):
        spans.append((start, stop))
        return table(words, start, stop)

    cache = CacheConfig(kind="dual", refresh=99, delay=0)
    run(config, torch.full((1, 20), MASK), denoiser=spy, cache=cache, max_calls=9)
    assert len(spans) == 5 and spans.count((0, 20)) == whole
