"""Shares of hidden words that are found while a model trains: the variance is the true one, and the least is taken."""

from typing import Any

import pytest
import torch

from manta.errors import CheckpointError, ConfigError
from manta.masked import MaskedObjectiveConfig, Rates, masked_cross_entropy
from manta.masked.rates import BINS, EXPLORED, LEAST_WIDTH, WARMUP

MASK, VOCAB = 1, 8


def seen(rates: Rates, loss, rows: int = 20_000, seed: int = 0) -> Rates:
    """After so many rows of uniform shares whose losses are `loss(share, noise)`."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(rows, generator=generator, dtype=torch.float64)
    rates.observe(share, loss(share, torch.randn(rows, generator=generator, dtype=torch.float64)))
    return rates


def test_the_variance_between_bounds_is_that_of_a_loss_known_in_closed_form():
    """x = a + b·share + noise/√share: Var = b²·width²/12 + log(high/low)/width, with its mean's part in it."""
    rates = seen(Rates(), lambda share, noise: 3 + 2 * share + noise / share.sqrt(), 400_000)
    for (low, high), value in rates.variances().items():
        if low >= 0.1:
            width = high - low
            exact = 4 * width**2 / 12 + torch.log(torch.tensor(high / low)).item() / width
            assert value == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("loss", "bounds"),
    [
        (lambda share, noise: noise / share, (0.5, 1.0)),
        (lambda share, noise: noise * share, (0.0, 0.5)),
        (lambda share, noise: noise * (0.1 + (share - 0.5).abs()), (0.25, 0.75)),
    ],
)
def test_the_interval_of_the_least_variance_is_taken(loss, bounds):
    rates = seen(Rates(), loss)
    assert (rates.low, rates.high) == pytest.approx(bounds, abs=1.5 / BINS)
    assert rates.high - rates.low >= LEAST_WIDTH - 1e-9
    found = rates.variances()
    assert found[rates.low, rates.high] == min(found.values())


def test_shares_cover_the_interval_and_some_rows_the_whole():
    rates = Rates()
    strata = (torch.arange(8000) + 0.5) / 8000
    assert torch.allclose(rates.shares(strata, 0.0).sort().values, strata, atol=2e-3), "all alike at first"
    rates.low, rates.high = 0.3, 0.8
    shares = rates.shares(strata, 0.01)
    inside = (shares >= 0.3) & (shares <= 0.8)
    assert float(inside.float().mean()) == pytest.approx(1 - EXPLORED * (1 - 0.5 / 0.99), abs=2e-3)
    assert float(shares.min()) == pytest.approx(0.01, abs=1e-3) and float(shares.max()) > 0.999
    assert float(shares[strata >= EXPLORED].mean()) == pytest.approx(0.55, abs=1e-3)


def test_nothing_is_preferred_before_enough_was_seen_and_a_state_goes_on_where_it_was():
    def steep(share, noise):
        return noise * (1.5 - share)

    early = seen(Rates(), steep, WARMUP - 1)
    assert (early.low, early.high) == (0.0, 1.0)
    rates, again = seen(Rates(), steep), Rates()
    again.load_state_dict(rates.state_dict())
    assert (again.low, again.high) == (rates.low, rates.high) != (0.0, 1.0)
    for each in (rates, again):
        seen(each, lambda share, noise: noise * share, 60_000, seed=1)
    assert (again.low, again.high) == (rates.low, rates.high) == (0.0, 0.5), "older rows fade"
    assert torch.equal(again.state_dict()["sums"], rates.state_dict()["sums"])
    with pytest.raises(CheckpointError, match="20 intervals"):
        Rates().load_state_dict({"sums": torch.zeros(3, 7), "rows": torch.tensor(1)})


def loss_of(config: MaskedObjectiveConfig, rates: Rates | None = None, rows: int = 4000):
    """The objective where a word is told with one chance whatever is shown, and what was hidden."""
    tokens, shown = torch.full((rows, 10), 5), []
    weight = torch.zeros(VOCAB, requires_grad=True)

    def denoiser(given):
        shown.append(given == MASK)
        return weight.expand(*given.shape, VOCAB)

    generator, mask = torch.Generator().manual_seed(0), torch.ones_like(tokens).bool()
    given = {"mask_id": MASK, "generator": generator, "config": config, "rates": rates}
    return masked_cross_entropy(denoiser, tokens, mask, **given), shown[0]


def test_bounds_of_the_shares_are_kept_and_every_word_weighs_the_same_on_average():
    loss, hidden = loss_of(MaskedObjectiveConfig(least_share=0.4, most_share=0.6))
    counts = hidden.sum(1).float()
    assert float(hidden.float().mean()) == pytest.approx(0.5, abs=0.01)
    variance = 10 * (0.25 - 0.2**2 / 12) + 100 * 0.2**2 / 12  # of a binomial whose share is uniform
    assert float(counts.var()) == pytest.approx(variance, rel=0.06)
    assert loss.total.item() == pytest.approx(torch.tensor(VOCAB).log().item(), rel=0.02)
    full, _ = loss_of(MaskedObjectiveConfig())
    assert "low" not in full.parts


def test_rates_learn_from_a_step_that_is_trained_on_and_from_no_other():
    """A word of chance 1/8 costs log 8 · hidden/(10·share): mean log 8, variance log² 8 · (1 − share)/(10·share)."""
    rates, config = Rates(), MaskedObjectiveConfig(rates="auto")
    with torch.no_grad():
        loss_of(config, rates)
    assert not rates.state_dict()["sums"].any()
    for _ in range(10):
        loss, _ = loss_of(config, rates)
    log = torch.tensor(VOCAB).double().log()
    share = torch.linspace(0.5, 1, 1001, dtype=torch.float64)
    exact = float(log**2 * ((1 - share) / (10 * share)).mean())
    assert rates.variances()[0.5, 1.0] == pytest.approx(exact, rel=0.1)
    assert (rates.low, rates.high) == (0.5, 1.0), "the more is hidden, the less it varies"
    assert float(loss.parts["low"]) == 0.5 and float(loss.parts["high"]) == 1.0


def test_settings_that_do_not_go_together_are_refused():
    refused: list[tuple[dict[str, Any], str]] = [
        ({"most_share": 1.1}, "at most 1"),
        ({"least_share": 0.5, "most_share": 0.5}, "above least_share"),
        ({"most_share": 0.9, "complementary": True}, "complementary masks are of all shares"),
        ({"rates": "auto", "complementary": True}, "complementary masks are of all shares"),
        ({"rates": "auto", "most_share": 0.9}, "finds the bounds itself"),
    ]
    for wrong, said in refused:
        with pytest.raises(ConfigError, match=said):
            MaskedObjectiveConfig(**wrong)
