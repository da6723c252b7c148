"""What policies decide on small canvases, computed by hand."""

from dataclasses import replace

import pytest
import torch

from manta.errors import ConfigError
from manta.masked import (
    DECODERS,
    CacheConfig,
    Canvas,
    ConfidenceConfig,
    DeferredConfig,
    MaskedObjectiveConfig,
    RemaskConfig,
    ThresholdConfig,
    WordSampler,
    decode,
)
from manta.masked.policies import Threshold, above, block_ends, blocks_of, least, top

MASK = 1


def canvas_of(row: str, *, budget: int | None = None, calls: int = 1) -> Canvas:
    """A row with `.` for a given word, `o` for one to be written and `x` for one written, sure as its place counts."""
    writable = torch.tensor([[sign != "." for sign in row]])
    masked = torch.tensor([[sign == "o" for sign in row]])
    sure = torch.arange(len(row), dtype=torch.float64)[None] / 10
    tokens = torch.full(masked.shape, 5).masked_fill(masked, MASK)
    return Canvas(tokens, writable, masked, sure.masked_fill(~writable | masked, torch.inf), budget, calls)


def test_the_top_are_the_largest_finite_ones_and_the_leftmost_of_equals():
    values = torch.tensor([[0.2, 0.7, 0.7, -torch.inf, 0.7], [-torch.inf, 0.1, -torch.inf, -torch.inf, 0.3]])
    assert top(values, torch.tensor([2, 3])).tolist() == [
        [False, True, True, False, False],
        [False, True, False, False, True],
    ]
    assert not top(values, torch.tensor([0, 0])).any()


def test_the_least_certain_are_of_the_words_written():
    canvas = canvas_of("x.oxx")
    canvas.confidence[0, 2] = 0.0  # of a word that was taken back
    assert least(canvas, torch.tensor([2])).tolist() == [[True, False, False, True, False]]


def test_blocks_are_counted_from_the_first_writable_place():
    canvas = canvas_of("..xxooooo")
    assert blocks_of(canvas, 3).tolist() == [[-1, -1, 0, 0, 0, 1, 1, 1, 2]]
    assert [int(end) for end in block_ends(canvas, canvas.masked, 3)] == [2, 5]
    assert [int(end) for end in block_ends(canvas, canvas_of("..xxxxooo").masked, 3)] == [5, 8]
    assert [int(end) for end in block_ends(canvas, canvas_of("..xxxxxxo").masked, 3)] == [8, 9]
    assert [int(end) for end in block_ends(canvas, canvas.masked, None)] == [0, 9]


def test_a_word_at_the_threshold_is_sure_enough_and_one_always_is():
    sure = torch.tensor([[0.5, 0.9, 0.89, -torch.inf], [0.5, 0.2, 0.5, -torch.inf]], dtype=torch.float64)
    assert above(sure, 0.9).tolist() == [[False, True, False, False], [True, False, False, False]]


@pytest.mark.parametrize(
    ("confidence", "committed"),
    [
        ([0.6, 0.75, 0.5, 0.1], [1]),  # the second would need 0.7
        ([0.7, 0.75, 0.5, 0.1], [0, 1]),  # the third would need 0.775
        ([0.8, 0.78, 0.79, 0.1], [0, 1, 2]),
        ([0.1, 0.2, 0.05, 0.1], [1]),
        ([0.6, 0.6, 0.6, 0.99], [3]),  # the second is not sure enough, so the third is not asked
    ],
)
def test_a_factor_commits_the_surest_while_they_are_sure_for_their_number(confidence, committed):
    policy = ThresholdConfig(factor=0.9).build()
    canvas = canvas_of("oooo")
    found = policy.sure(canvas, canvas.masked, torch.tensor([confidence], dtype=torch.float64))
    assert found[0].nonzero()[:, 0].tolist() == committed


@pytest.mark.parametrize(
    ("calls", "before", "after", "sigma"),
    [
        (1, 0.0, 0.4, 0.0),
        (2, 0.4, 0.8, 0.0),
        (3, 0.8, 0.8, 0.25),
        (6, 0.8, 0.8, 0.25),
        (7, 0.8, 0.9, 0.0),
        (8, 0.9, 1.0, 0.0),
    ],
)
def test_a_loop_rises_stands_and_rises_again(calls, before, after, sigma):
    settings = {"num_steps": 8, "schedule": "loop", "t_on": 0.75, "t_off": 0.25, "alpha_on": 0.8}
    canvas = canvas_of("oooo", budget=8, calls=calls)
    for eta, most in ((0.5, sigma), (0.1, min(0.1, sigma))):
        found = RemaskConfig(eta=eta, **settings).build().alphas(canvas)  # pyright: ignore[reportArgumentType]
        assert found == pytest.approx((before, after, most))


@pytest.mark.parametrize(
    ("calls", "before", "after", "sigma"), [(1, 0, 1 / 8, 0.3), (5, 4 / 8, 5 / 8, 0.3), (7, 6 / 8, 7 / 8, 1 / 6)]
)
def test_a_cap_is_held_while_as_many_words_may_be_masked(calls, before, after, sigma):
    found = RemaskConfig(num_steps=8, eta=0.3).build().alphas(canvas_of("oooo", budget=8, calls=calls))
    assert found == pytest.approx((before, after, sigma))


def test_remasking_takes_back_and_keeps_masked_by_its_two_draws(monkeypatch):
    """At call 5 of 8: α_t 0.5, α_s 0.625, σ 0.3, so a masked place stays with (1 − 0.625 − 0.15)/0.5 = 0.45."""
    draws = torch.tensor([[[0.44, 0.46, 0.9, 0.0, 0.5], [0.0, 0.0, 0.29, 0.31, 0.0]]], dtype=torch.float64)
    monkeypatch.setattr(WordSampler, "uniform", lambda sampler, shape: draws)
    canvas, policy = canvas_of("ooxx.", budget=8, calls=5), RemaskConfig(num_steps=8, eta=0.3).build()
    sampler = WordSampler(width=5)
    chosen = policy.choose(canvas, canvas.masked, canvas.confidence, sampler)
    assert chosen.tolist() == [[False, True, False, False, False]]
    back = policy.remask(canvas, sampler)
    assert back is not None and back.tolist() == [[False, False, True, False, False]]
    last = canvas_of("ooxx.", budget=8, calls=8)
    assert torch.equal(policy.choose(last, last.masked, last.confidence, sampler), last.masked)


@pytest.mark.parametrize(
    ("budget", "rounds", "share"),
    [
        (None, 1, 0),
        (5, 0, 2),  # 8 words in 5 calls
        (5, 1, 2),  # a call is kept for the round, and 4 are left
        (20, 1, 1),
        (2, 3, 8),  # the budget has a call for one round alone
        (6, 2, 2),  # 6·2/(8 + 4) is one call a round, and 4 are left
        (10, 2, 1),
    ],
)
def test_deferring_keeps_calls_for_the_words_it_will_take_back(budget, rounds, share):
    canvas = canvas_of("oooooooo", budget=budget)
    assert DeferredConfig(rounds=rounds, share=0.25).build().share(canvas).tolist() == [share]


def test_a_round_takes_back_its_share_once_all_is_written():
    policy, sampler = DeferredConfig(rounds=1, share=0.3).build(), WordSampler()
    assert policy.remask(canvas_of("xxxo."), sampler) is None
    back = policy.remask(canvas_of("xxxx."), sampler)
    assert back is not None and back.tolist() == [[True, True, False, False, False]]
    assert policy.remask(canvas_of("xxxx."), sampler) is None, "one round is over"
    assert DeferredConfig(rounds=2, share=0.3).build().most_calls(canvas_of("oooo.")) == 4 + 2 * 2


@pytest.mark.parametrize(
    ("row", "calls", "committed"),
    [
        ("oooooo", 1, 2),  # two of four calls are the second block's
        ("xxoooo", 2, 1),
        ("xxxooo", 3, 2),
        ("xxxxxo", 4, 1),
    ],
)
def test_a_block_has_its_share_of_the_calls(row, calls, committed):
    policy = ConfidenceConfig(num_steps=4, block_length=3).build()
    canvas = canvas_of(row, budget=4, calls=calls)
    sure = torch.arange(6, dtype=torch.float64)[None].masked_fill(~canvas.masked, -torch.inf)
    assert int(policy.choose(canvas, canvas.masked, sure, WordSampler()).sum()) == committed


@pytest.mark.parametrize(("budget", "calls", "share"), [(None, 1, 0), (3, 1, 2), (3, 2, 3), (3, 3, 5), (9, 1, 1)])
def test_a_call_has_an_even_share_of_the_words_left_and_none_without_a_budget(budget, calls, share):
    assert ThresholdConfig().build().share(canvas_of("ooo.oox", budget=budget, calls=calls)).tolist() == [share]


def test_a_policy_is_shown_confidences_of_open_places_alone():
    shown = []

    class Watching(Threshold):
        def choose(self, canvas, open_, confidence, sampler):
            shown.append((open_, confidence))
            return super().choose(canvas, open_, confidence, sampler)

    tokens = torch.tensor([[MASK, 5, MASK, MASK]])
    logits = torch.arange(24.0).view(1, 4, 6)
    policy = Watching(ThresholdConfig(threshold=2.0))
    list(decode(lambda tokens, start, stop: logits.clone(), tokens, policy, mask_id=MASK, sampler=WordSampler()))
    assert len(shown) == 3
    for open_, confidence in shown:
        assert torch.equal(confidence == -torch.inf, ~open_) and confidence[open_].isfinite().all()


@pytest.mark.parametrize(
    ("config", "fitting", "wrong"),
    [
        (
            RemaskConfig(),
            {"num_steps": [1], "eta": [0.0, 1.0], "t_on": [1.0], "t_off": [0.0], "alpha_on": [0.001, 0.999]},
            {
                "num_steps": [0],
                "eta": [-0.01, 1.01],
                "t_on": [0.05, 1.01],
                "t_off": [-0.01, 0.55],
                "alpha_on": [0.0, 1.0],
                "schedule": ["odd"],
            },
        ),
        (
            ConfidenceConfig(),
            {"num_steps": [1], "block_length": [1, None], "order": ["random"]},
            {"num_steps": [0], "block_length": [0], "order": ["odd"]},
        ),
        (
            ThresholdConfig(),
            {"factor": [0.001, None], "block_length": [1, None]},
            {"factor": [0.0, -1.0], "block_length": [0]},
        ),
        (
            DeferredConfig(),
            {"window_masked": [1], "window_width": [1], "rounds": [0], "share": [0.001, 1.0]},
            {"window_masked": [0], "window_width": [0], "rounds": [-1], "share": [0.0, 1.01]},
        ),
        (CacheConfig(), {"refresh": [0], "delay": [0]}, {"refresh": [-1], "delay": [-1], "kind": ["odd"]}),
        (
            MaskedObjectiveConfig(),
            {"least_share": [0.001, 0.999], "copies": [1, 2]},
            {"least_share": [0.0, 1.0], "copies": [0]},
        ),
    ],
    ids=lambda given: type(given).__name__,
)
def test_settings_out_of_range_are_refused_and_those_at_their_ends_are_not(config, fitting, wrong):
    for name, values in fitting.items():
        for value in values:
            assert getattr(replace(config, **{name: value}), name) == value
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ConfigError):
                replace(config, **{name: value})


def test_without_a_budget_a_call_a_word_is_the_most():
    policy = ThresholdConfig().build()
    assert policy.most_calls(canvas_of("oo.x")) == 3
    none = torch.zeros(0, 4)
    assert policy.most_calls(Canvas(none.long(), none.bool(), none.bool(), none.double())) == 0


def test_places_chosen_without_a_look_at_the_words_leave_the_words_to_the_model():
    exact = {kind for kind, config in DECODERS.items() if config().build().exact}
    assert exact == {"remask", "first_hitting"}
    assert ConfidenceConfig(order="random").build().exact
