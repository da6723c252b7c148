"""What masked models are taught: maskers keep their share, the loss is a bound of the likelihood, and it is tight."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manta.errors import ConfigError, UsageError
from manta.masked import MASKERS, MaskedObjectiveConfig, likelihood_bound, masked_cross_entropy, masker
from manta.masked.maskers import entropy

MASK, VOCAB = 1, 6


@pytest.mark.parametrize("kind", ["uniform", "span"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_a_masker_hides_the_share_it_is_given(kind, share):
    tokens = torch.randint(2, VOCAB, (400, 32))
    mask = torch.ones_like(tokens).bool()
    mask[:, 28:] = False
    hidden = masker(kind)(tokens, mask, torch.full((400,), share), torch.Generator().manual_seed(0))
    assert not hidden[~mask].any()
    assert float(hidden[mask].float().mean()) == pytest.approx(share, abs=0.03)


def test_spans_hide_neighbours_together():
    tokens, mask = torch.randint(2, VOCAB, (400, 64)), torch.ones(400, 64).bool()
    share = torch.full((400,), 0.3)
    runs = {}
    for kind in ("uniform", "span"):
        hidden = masker(kind)(tokens, mask, share, torch.Generator().manual_seed(0))
        begins = hidden & ~F.pad(hidden[:, :-1], (1, 0))
        runs[kind] = float(hidden.sum() / begins.sum())
    assert runs["uniform"] == pytest.approx(1 / 0.7, rel=0.1)
    assert runs["span"] == pytest.approx(4.0, rel=0.1)


def test_rare_words_are_hidden_more_often():
    tokens = torch.where(torch.rand(300, 40) < 0.05, 5, 2)
    hidden = masker("rarity")(tokens, torch.ones_like(tokens).bool(), torch.full((300,), 0.4), torch.Generator())
    assert hidden[tokens == 5].float().mean() > 2 * hidden[tokens == 2].float().mean()


def independent(chance: torch.Tensor):
    """The denoiser of independent words, which is exact at every masking."""
    return lambda tokens: chance.log().expand(*tokens.shape, VOCAB).clone()


CHANCE = torch.tensor([0.1, 1e-9, 0.2, 0.3, 0.15, 0.25])


@pytest.mark.parametrize(
    ("masking", "supervised"),
    [({}, 1 / 2), ({"copies": 2}, 3 / 4), ({"copies": 3}, 7 / 8), ({"complementary": True}, 1.0)],
)
def test_the_loss_is_the_mean_negative_log_likelihood_of_an_exact_model(masking, supervised):
    tokens = torch.multinomial(CHANCE, 4000 * 8, replacement=True).view(4000, 8)
    mask = torch.ones_like(tokens).bool()
    config = MaskedObjectiveConfig(**masking)
    settings = {"mask_id": MASK, "generator": torch.Generator().manual_seed(0), "config": config}
    loss = masked_cross_entropy(independent(CHANCE), tokens, mask, **settings)
    exact = -CHANCE.log()[tokens].mean()
    assert float(loss.total) == pytest.approx(float(exact), rel=0.05)
    exactly = masking == {"complementary": True}
    assert float(loss.parts["supervised"]) == pytest.approx(supervised, abs=1e-6 if exactly else 0.02)


def test_complementary_rows_hide_every_word_once():
    tokens, mask = torch.randint(2, VOCAB, (64, 10)), torch.arange(10) < torch.randint(3, 11, (64, 1))
    keep = torch.rand(64, 10) < 0.2
    seen = []

    def denoiser(given):
        seen.append(given == MASK)
        return torch.zeros(*given.shape, VOCAB)

    config = MaskedObjectiveConfig(complementary=True)
    masked_cross_entropy(
        denoiser, tokens, mask, mask_id=MASK, generator=torch.Generator().manual_seed(0), config=config, keep=keep
    )
    first, second = seen[0].chunk(2)
    assert torch.equal(first ^ second, mask & ~keep)
    assert not (first & second).any()


def test_given_words_are_never_hidden():
    tokens, mask = torch.randint(2, VOCAB, (64, 10)), torch.ones(64, 10).bool()
    keep = torch.zeros_like(mask)
    keep[:, :5] = True
    seen = []

    def denoiser(given):
        seen.append(given)
        return torch.zeros(*given.shape, VOCAB)

    settings = {"mask_id": MASK, "generator": torch.Generator(), "config": MaskedObjectiveConfig()}
    masked_cross_entropy(denoiser, tokens, mask, keep=keep, **settings)
    assert (seen[0][keep] != MASK).all()
    assert (seen[0] == MASK).any()


def test_the_bound_is_exact_for_words_in_a_chain_told_by_their_joint():
    """Two words, the second a copy of the first: −log p = log 4, which any order of unmasking gives."""

    def denoiser(tokens):
        logits = torch.full((*tokens.shape, VOCAB), -1e9)
        for row, (a, b) in enumerate(tokens.tolist()):
            for place, other in ((0, b), (1, a)):
                if other == MASK:
                    logits[row, place, 2:] = 0
                else:
                    logits[row, place, other] = 0
        return logits

    tokens = torch.tensor([[3, 3], [5, 5]])
    found = likelihood_bound(
        denoiser,
        tokens,
        torch.ones(2, 2).bool(),
        mask_id=MASK,
        generators=[torch.Generator().manual_seed(row) for row in range(2)],
        width=2,
        num_samples=400,
    )
    # Both hidden: 2/2 · 2 log 4. One hidden: its copy tells it, 2/1 · 0. The mean is log 4.
    torch.testing.assert_close(found.nats, torch.full((2,), math.log(4)), atol=0.15, rtol=0)
    assert (found.standard_error < 0.1).all()


def test_the_bound_covers_the_truth_within_its_error():
    tokens = torch.multinomial(CHANCE, 3 * 9, replacement=True).view(3, 9)
    mask = torch.arange(9) < torch.tensor([9, 5, 2])[:, None]
    found = likelihood_bound(
        independent(CHANCE),
        tokens,
        mask,
        mask_id=MASK,
        generators=[torch.Generator().manual_seed(row) for row in range(3)],
        width=9,
        num_samples=200,
    )
    exact = -(CHANCE.log()[tokens] * mask).sum(1)
    assert ((found.nats - exact).abs() < 5 * found.standard_error + 0.05).all()


def test_what_cannot_be_is_refused():
    assert set(MASKERS) == {"uniform", "span", "rarity"}
    with pytest.raises(ConfigError, match="unknown masker"):
        masker("syntax")
    wrong: list[dict[str, Any]] = [{"masker": "x"}, {"weighting": "x"}, {"least_share": 0.0}, {"copies": 0}]
    wrong.append({"copies": 2, "complementary": True})
    for settings in wrong:
        with pytest.raises(ConfigError):
            MaskedObjectiveConfig(**settings)
    tokens = torch.tensor([[3, 3]])
    with pytest.raises(UsageError, match="two samples"):
        likelihood_bound(independent(CHANCE), tokens, tokens > 0, mask_id=MASK, generators=[], width=2, num_samples=1)
    with pytest.raises(UsageError, match="generators"):
        likelihood_bound(independent(CHANCE), tokens, tokens > 0, mask_id=MASK, generators=[], width=2)


@pytest.mark.parametrize("kind", MASKERS)
def test_shares_and_places_are_drawn_from_the_generator_alone(kind, no_global_draws):
    tokens = torch.tensor([[2, 3, 4, 2], [5, 2, 2, 3]])
    settings = {"mask_id": MASK, "config": MaskedObjectiveConfig(masker=kind)}
    with no_global_draws():
        masked_cross_entropy(
            independent(CHANCE), tokens, tokens > 0, generator=torch.Generator().manual_seed(0), **settings
        )
        sources = [torch.Generator().manual_seed(row) for row in range(2)]
        likelihood_bound(
            independent(CHANCE), tokens, tokens > 0, mask_id=MASK, generators=sources, width=4, num_samples=2
        )


def test_undecided_words_are_hidden_more_often_and_each_is_asked_for_once():
    """Words 5 have two equally likely readings, words 6 one; 7 lies in between."""
    tokens = torch.tensor([5, 6, 7, 0]).repeat(4000, 2)
    mask = tokens > 0
    chances = {5: [0.5, 0.5], 6: [1.0, 0.0], 7: [0.8, 0.2]}
    asked = []

    def denoiser(shown):
        asked.append(shown == MASK)
        return torch.tensor([chances.get(t, [0.5, 0.5]) for t in tokens.flatten().tolist()]).log().view(4000, 8, 2)

    hidden = entropy(denoiser, MASK)(tokens, mask, torch.full((4000,), 0.4), torch.Generator().manual_seed(0))
    assert len(asked) == 2 and torch.equal(asked[0] ^ asked[1], mask) and 0.48 < asked[0][mask].float().mean() < 0.52
    assert not hidden[~mask].any()
    nats = {word: -sum(p * math.log(p) for p in told if p) for word, told in chances.items()}
    mean = sum(nats.values()) / 3
    for word, own in nats.items():
        exponent = min(4, max(0.25, mean / max(own, 1e-6)))
        assert hidden[tokens == word].float().mean() == pytest.approx(0.4**exponent, abs=0.02)


def test_a_step_with_masks_by_entropy_is_a_step_like_others():
    with pytest.raises(ConfigError, match="one mask a text"):
        MaskedObjectiveConfig(masker="entropy", complementary=True)
    config = MaskedObjectiveConfig(masker="entropy", copies=2)
    tokens = torch.randint(2, 6, (6, 9))
    weights = torch.randn(6, 6, requires_grad=True)
    loss = masked_cross_entropy(
        lambda shown: weights[shown],
        tokens,
        tokens > 0,
        mask_id=1,
        generator=torch.Generator().manual_seed(0),
        config=config,
    )
    loss.total.backward()
    assert 0.4 < loss.parts["supervised"] < 1 and weights.grad is not None and weights.grad.isfinite().all()
