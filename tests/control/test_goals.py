"""Guidance toward a goal against closed forms: Bayes' rule on mixtures, the softmax's own derivative, enumeration."""

from itertools import product

import pytest
import torch

from manta.control.goals import classifier_goal, goal_guided, guide_logits, keyword_goal, length_goal
from manta.errors import UsageError
from manta.flow import mixture_field
from manta.types import Estimate

MEANS = torch.tensor([[-1.5, 0.5], [1.0, -0.5], [2.0, 2.0]], dtype=torch.float64)
STDS = torch.tensor([0.4, 0.6, 0.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_guided_by_the_exact_posterior_a_field_becomes_that_of_the_data_that_meet_the_goal(t):
    whole, wanted = mixture_field(MEANS, STDS, WEIGHTS), mixture_field(MEANS[1:2], STDS[1:2])
    state = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.full((5,), t, dtype=torch.float64)

    def posterior(x, at, **_):
        return wanted.log_density(x, at) + WEIGHTS[1].log() - whole.log_density(x, at)

    guided = goal_guided(whole, posterior, 1.0, cap=100.0)
    estimate = Estimate.of(guided(state, times))
    torch.testing.assert_close(estimate.clean, wanted(state, times), rtol=1e-8, atol=1e-8)
    assert estimate.nfe == 2
    assert goal_guided(whole, posterior, 0.0) is whole


def test_a_negative_strength_is_refused():
    with pytest.raises(UsageError, match="strength"):
        goal_guided(lambda x, t, **_: x, lambda x, t, **_: x.sum(1), -1.0)


def test_one_open_position_is_tilted_by_the_softmax_derivative():
    logits = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(1))
    goal, open_ = keyword_goal([3]), torch.zeros(2, 1, dtype=torch.bool)
    tilt = guide_logits(logits, torch.zeros(2, 1, dtype=torch.long), open_, goal, 2.5) - logits
    wanted = 2.5 * (torch.nn.functional.one_hot(torch.tensor(3), 7) - logits.softmax(-1))
    torch.testing.assert_close(tilt, wanted, rtol=1e-3, atol=1e-4)


def test_a_goal_that_is_met_changes_nothing():
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(2))
    tokens, known = torch.tensor([[3, 0, 0, 0]]), torch.tensor([[True, False, False, False]])
    guided = guide_logits(logits, tokens, known, keyword_goal([3]), 50.0)
    torch.testing.assert_close(guided[:, 1:], logits[:, 1:], rtol=0, atol=1e-3)


def test_words_that_must_not_come_stay_out():
    logits = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(3))
    logits[..., 1] = -torch.inf
    guided = guide_logits(logits, torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3).bool(), keyword_goal([4]), 3.0)
    assert bool((guided[..., 1] == -torch.inf).all())
    assert bool(guided[..., 2:].isfinite().all())


def test_the_probability_of_a_word_is_that_of_all_texts_which_hold_it():
    weights = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(4)).softmax(-1)
    chance = sum(
        float(torch.stack([weights[0, i, token] for i, token in enumerate(text)]).prod())
        for text in product(range(4), repeat=3)
        if 2 in text
    )
    assert float(keyword_goal([2])(weights).exp()) == pytest.approx(chance, rel=1e-5)


def test_a_phrase_lies_within_the_mask():
    weights = torch.zeros(1, 4, 5)
    weights[0, [0, 1, 2, 3], [0, 0, 2, 3]] = 1.0
    assert float(keyword_goal([2, 3])(weights)) == pytest.approx(0.0, abs=1e-3)
    inside = torch.tensor([[True, True, True, False]])
    assert float(keyword_goal([2, 3], inside)(weights)) < -20
    with pytest.raises(UsageError, match="at least one symbol"):
        keyword_goal([])


def test_a_classifier_of_whole_words_says_what_it_says_of_a_text_and_its_gradient_changes_the_text():
    weight, bias = torch.tensor([[2.0, -2.0], [-2.0, 2.0], [0.0, 0.0]]), torch.tensor([0.5, 0.0])
    mask = torch.tensor([[True, True, False]])
    goal = classifier_goal(weight, bias, 0, mask)
    text = torch.nn.functional.one_hot(torch.tensor([[0, 2, 1]]), 3).float()
    expected = torch.log_softmax(torch.tensor([1.0 + 0.5, -1.0]), -1)[0]
    torch.testing.assert_close(goal(text), expected[None])
    open_ = torch.zeros(1, 3, dtype=torch.bool)
    tilted = guide_logits(torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.long), open_, goal, 30.0)
    assert tilted.argmax(-1)[mask].tolist() == [0, 0]
    assert torch.equal(tilted[0, 2], torch.zeros(3)), "off the canvas nothing is asked"
    with pytest.raises(UsageError, match="labels 0 to 1"):
        classifier_goal(weight, bias, 2)


def test_a_length_goal_is_met_at_its_length_and_pulls_toward_it_from_both_sides():
    goal = length_goal(2.0, [0], tolerance=0.5)
    texts = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 0], [1, 0, 0, 0], [1, 1, 2, 0]]), 3).float()
    torch.testing.assert_close(goal(texts), torch.tensor([0.0, -2.0, -2.0]))
    inside = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(length_goal(2.0, [0, 0], inside, tolerance=0.5)(texts[2:]), torch.tensor([0.0]))
    for share, sign in ((0.2, -1), (0.8, 1)):  # of words: too few, too many
        logits = torch.tensor([1 - share, share / 2, share / 2]).log().expand(1, 4, 3)
        open_ = torch.zeros(1, 4, dtype=torch.bool)
        change = guide_logits(logits, torch.zeros(1, 4, dtype=torch.long), open_, goal, 1.0) - logits
        assert (sign * change[..., 0] > 0).all()
    for target, tolerance in ((-1.0, 1.0), (2.0, 0.0)):
        with pytest.raises(UsageError, match="a length is 0 or more"):
            length_goal(target, [0], tolerance=tolerance)
