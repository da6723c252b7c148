"""The masked losses on toy cases, computed by hand."""

import math
from typing import Any

import pytest
import torch

from manta.masked import MaskedObjectiveConfig, likelihood_bound, masked_cross_entropy, masker
from manta.masked.maskers import rarity
from manta.masked.structured import _confidence
from manta.runtime import make_generator

MASK, VOCAB = 1, 4

NATS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.25, 4.0]])
"""Cost of each word, whatever stands."""
TOKENS = torch.tensor([[2, 3, 2], [3, 3, 2]])
HIDDEN = torch.tensor([[True, False, True], [False, True, False]])


def costs(given: torch.Tensor) -> torch.Tensor:
    """Logits under which each word of TOKENS, repeated over the copies, costs its NATS."""
    copies = len(given) // len(TOKENS)
    nats, tokens = NATS.repeat(copies, 1), TOKENS.repeat(copies, 1)
    right = (-nats).exp()[..., None]
    hot = torch.nn.functional.one_hot(tokens, VOCAB).bool()
    return torch.where(hot, right, (1 - right) / (VOCAB - 1)).log()


def loss_of(monkeypatch, hidden: torch.Tensor, *, mask=None, keep=None, **config: Any):
    """The loss when a masker hides these words, with the shares that it was given."""
    seen = {}

    def hide(tokens, words, share, generator):
        seen["share"] = share
        return hidden & words

    monkeypatch.setattr("manta.masked.objective.masker", lambda kind: hide)
    mask = torch.ones_like(TOKENS).bool() if mask is None else mask
    settings = {"mask_id": MASK, "generator": torch.Generator().manual_seed(3), "keep": keep}
    loss = masked_cross_entropy(costs, TOKENS, mask, config=MaskedObjectiveConfig(**config), **settings)
    return loss, seen["share"].tolist()


def test_hidden_words_weigh_the_inverse_of_their_rows_share(monkeypatch):
    loss, (p, q) = loss_of(monkeypatch, HIDDEN)
    assert float(loss.total) == pytest.approx(((1 + 3) / p + 0.25 / q) / 6, rel=1e-5)
    assert float(loss.parts["nats"]) == pytest.approx(4.25 / 3, rel=1e-5)
    assert float(loss.parts["supervised"]) == pytest.approx(3 / 6)


def test_the_mean_weighs_hidden_words_alike(monkeypatch):
    loss, _ = loss_of(monkeypatch, HIDDEN, weighting="mean")
    assert float(loss.total) == pytest.approx(4.25 / 3, rel=1e-5)
    nothing, _ = loss_of(monkeypatch, torch.zeros_like(HIDDEN), weighting="mean")
    assert float(nothing.total) == float(nothing.parts["nats"]) == float(nothing.parts["supervised"]) == 0


def test_words_off_the_canvas_and_kept_ones_do_not_count(monkeypatch):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    keep = torch.tensor([[False, False, False], [True, False, False]])
    loss, (p, q) = loss_of(monkeypatch, HIDDEN, mask=mask, keep=keep)
    assert float(loss.total) == pytest.approx((1 / p + 0.25 / q) / 4, rel=1e-5)
    assert float(loss.parts["supervised"]) == pytest.approx(2 / 4)


def test_copies_are_rows_of_their_own(monkeypatch):
    hidden = torch.cat([HIDDEN, torch.tensor([[True, True, False], [False, False, False]])])
    loss, (p, q, r, _) = loss_of(monkeypatch, hidden, copies=2)
    assert float(loss.total) == pytest.approx(((1 + 3) / p + 0.25 / q + (1 + 2) / r) / 12, rel=1e-5)
    assert float(loss.parts["supervised"]) == pytest.approx(4 / 6)


def test_a_complement_weighs_the_inverse_of_what_is_left(monkeypatch):
    loss, (p, q) = loss_of(monkeypatch, HIDDEN, complementary=True)
    total = 4 / p + 0.25 / q + 2 / (1 - p) + 4.5 / (1 - q)
    assert float(loss.total) == pytest.approx(total / 12, rel=1e-4)
    assert float(loss.parts["nats"]) == pytest.approx(float(NATS.mean()), rel=1e-5)
    assert float(loss.parts["supervised"]) == 1


@pytest.mark.parametrize("least", [0.2, 0.6])
def test_shares_lie_one_in_each_stratum_above_the_least(monkeypatch, least):
    seen = []

    def hide(tokens, words, share, generator):
        seen.append(share)
        return words

    monkeypatch.setattr("manta.masked.objective.masker", lambda kind: hide)
    tokens = torch.full((8, 3), 2)
    settings = {"mask_id": MASK, "generator": torch.Generator().manual_seed(0)}
    config = MaskedObjectiveConfig(least_share=least)
    for _ in range(20):
        masked_cross_entropy(lambda t: torch.zeros(8, 3, VOCAB), tokens, tokens > 0, config=config, **settings)
    for share in seen:
        strata = ((share - least) / (1 - least) * 8).sort().values
        assert strata.floor().tolist() == list(range(8))
    assert len({int(share.argmax()) for share in seen}) > 3, "in no order"


def test_the_bound_weighs_hidden_words_by_n_over_l():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    counts, draws = [3, 2], []

    def denoiser(given):
        draws.append(given == MASK)
        return costs(given)

    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    settings = {"mask_id": MASK, "generators": generators, "width": 3, "num_samples": 6}
    found = likelihood_bound(denoiser, TOKENS, mask, **settings)
    assert sorted(int(hidden[0].sum()) for hidden in draws) == [1, 1, 2, 2, 3, 3]
    assert sorted(int(hidden[1].sum()) for hidden in draws) == [1, 1, 1, 2, 2, 2]
    assert not any(bool(hidden[1, 2]) for hidden in draws)
    for row, n in enumerate(counts):
        samples = [float((NATS[row] * h[row]).sum()) * n / int(h[row].sum()) for h in draws]
        mean = sum(samples) / 6
        deviation = math.sqrt(sum((x - mean) ** 2 for x in samples) / 5)
        assert float(found.nats[row]) == pytest.approx(mean, rel=1e-5)
        assert float(found.standard_error[row]) == pytest.approx(deviation / math.sqrt(6), rel=1e-4)
    assert found.num_samples == 6


def test_the_bound_hides_no_more_words_than_there_are(monkeypatch):
    """Draws as near to 1 as float64 has them: the last stratum is then rounded to n itself."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, 1 - 2**-53, dtype=dtype))
    tokens = torch.full((1, 100), 2)
    settings = {"mask_id": MASK, "generators": [torch.Generator()], "width": 100, "num_samples": 128}
    found = likelihood_bound(lambda t: torch.zeros(*t.shape, VOCAB), tokens, tokens > 0, **settings)
    assert float(found.nats) == pytest.approx(100 * math.log(VOCAB), rel=1e-5)
    assert float(found.standard_error) == pytest.approx(0, abs=1e-3)


def test_rare_words_are_hidden_by_their_surprise():
    """Nine words in ten are one and the tenth another: surprises 0.105 and 2.303, their mean 0.325."""
    tokens = torch.full((4000, 10), 2)
    tokens[:, 0] = 3
    hidden = masker("rarity")(tokens, tokens > 0, torch.full((4000,), 0.3), torch.Generator().manual_seed(0))
    often, rare = -math.log(0.9), -math.log(0.1)
    mean = 0.9 * often + 0.1 * rare
    assert float(hidden[:, 0].float().mean()) == pytest.approx(0.3 ** max(0.25, mean / rare), abs=0.03)
    assert float(hidden[:, 1:].float().mean()) == pytest.approx(0.3 ** min(4, mean / often), abs=0.005)


@pytest.mark.parametrize(("share", "length"), [(0.3, 4.0), (0.5, 4.0), (0.9, 9.0)])
def test_runs_have_the_length_they_are_told_or_what_their_share_asks_for(share, length):
    tokens = torch.full((300, 400), 2)
    hidden = masker("span")(tokens, tokens > 0, torch.full((300,), share), torch.Generator().manual_seed(0))
    begins = hidden[:, 1:] & ~hidden[:, :-1]
    assert float(hidden[:, 1:].sum() / begins.sum()) == pytest.approx(length, rel=0.06)
    assert float(hidden[:, 0].float().mean()) == pytest.approx(share, abs=0.1)


def test_a_run_goes_on_from_its_first_word_as_from_any_other():
    tokens = torch.full((4000, 3), 2)
    hidden = masker("span")(tokens, tokens > 0, torch.full((4000,), 0.3), torch.Generator().manual_seed(0))
    for place in (0, 1):
        begun = hidden[:, place]
        assert float(hidden[begun, place + 1].float().mean()) == pytest.approx(1 - 1 / 4, abs=0.05)
        assert float(hidden[~begun, place + 1].float().mean()) == pytest.approx(0.3 / 0.7 / 4, abs=0.03)


def test_a_margin_is_that_of_the_two_likeliest_words_where_there_are_no_more():
    posterior = torch.tensor([0.3, 0.7])
    assert float(_confidence(posterior, 1, "margin")) == pytest.approx(0.4)
    assert float(_confidence(torch.tensor([0.1, 0.6, 0.3]), 2, "margin")) == pytest.approx(0.3), "whatever the word"
    assert float(_confidence(posterior, 0, "probability")) == pytest.approx(0.3)
    assert float(_confidence(posterior, 0, "entropy")) == pytest.approx(0.3 * math.log(0.3) + 0.7 * math.log(0.7))


def test_words_are_rare_by_what_stands_under_the_mask_alone():
    """The largest word stands outside: it is counted by nobody, and hides nothing."""
    tokens = torch.tensor([[2, 2, 2, 3, 9]])
    mask = torch.tensor([[True, True, True, True, False]])
    hidden = torch.cat([rarity(tokens, mask, torch.tensor([0.5]), make_generator(seed)) for seed in range(400)])
    assert not hidden[:, 4].any()
    surprise = [-math.log(3 / 4), -math.log(1 / 4)]
    mean = (3 * surprise[0] + surprise[1]) / 4
    for place, value in ((0, surprise[0]), (3, surprise[1])):
        chance = 0.5 ** min(4.0, max(0.25, mean / value))
        assert float(hidden[:, place].float().mean()) == pytest.approx(chance, abs=0.08)
