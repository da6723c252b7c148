"""Objectives: what they average, what they leave out, what their minimiser is."""

import math

import pytest
import torch

from manta.errors import UsageError
from manta.flow.closed_form import mixture_field
from manta.flow.objective import (
    FlowObjectiveConfig,
    expected_embedding,
    posterior_target,
    terminal_cross_entropy,
    velocity_matching,
)
from manta.flow.path import LinearPath
from manta.flow.time_density import TimeDensityConfig


def common(seed: int = 0, kind: str = "uniform", **config) -> dict:
    return {
        "path": LinearPath(),
        "time_density": TimeDensityConfig(kind=kind).build(),  # pyright: ignore[reportArgumentType]
        "generator": torch.Generator().manual_seed(seed),
        "config": FlowObjectiveConfig(**{"start_share": 0.0, "end_share": 0.0, **config}),
    }


def test_a_share_of_the_rows_stands_at_either_end_of_the_path() -> None:
    seen = {}

    def field(state, t, *, cond, self_cond):
        seen["t"] = t
        return torch.zeros_like(state)

    settings = common(start_share=0.3, end_share=0.2, self_cond_probability=0.0)
    velocity_matching(field, torch.randn(4000, 1, 2), **settings)
    assert float((seen["t"] == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float((seen["t"] == 1).float().mean()) == pytest.approx(0.2, abs=0.03)


def test_the_loss_is_the_capped_velocity_error_over_scored_positions() -> None:
    clean = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(4) < torch.tensor([4, 3, 2, 1, 4, 4])[:, None]
    known = torch.zeros(6, 4, dtype=torch.bool)
    known[:, 0] = torch.tensor([True, False, True, False, False, True])
    seen = {}

    def field(state, t, *, cond, self_cond):
        seen.update(state=state, t=t)
        return 0.5 * state

    loss = velocity_matching(field, clean, mask=mask, known=known, **common(weight_cap=4.0, self_cond_probability=0.0))
    scored, t = mask & ~known, seen["t"]
    assert bool((t[known] == 1).all()) and torch.equal(seen["state"][known], clean[known])
    error = (0.5 * seen["state"] - clean).square().mean(-1)
    expected = torch.stack(
        [min(1 / (1 - float(t[i])) ** 2, 4.0) * error[i] for i in map(tuple, scored.nonzero().tolist())]
    )
    torch.testing.assert_close(loss.total, expected.mean())
    torch.testing.assert_close(loss.parts["velocity"], loss.total)
    torch.testing.assert_close(loss.parts["clean_error"], error[scored].mean())


def test_padding_and_known_positions_get_no_gradient() -> None:
    clean = torch.randn(4, 5, 2)
    mask = torch.arange(5) < 3
    known = torch.arange(5) == 1
    offset = torch.zeros(4, 5, 2, requires_grad=True)
    arguments = common(self_cond_probability=0.0)
    masks = {"mask": mask.expand(4, 5), "known": known.expand(4, 5)}
    loss = velocity_matching(lambda state, t, *, cond, self_cond: state + offset, clean, **masks, **arguments)
    (gradient,) = torch.autograd.grad(loss.total, offset)
    assert torch.equal((gradient != 0).any(-1), (mask & ~known).expand(4, 5))


def test_self_conditioning_feeds_back_the_disturbed_estimate_of_the_chosen_rows() -> None:
    clean, passes = torch.randn(400, 2, 2), []

    def field(state, t, *, cond, self_cond):
        passes.append((state, self_cond, cond))
        return torch.full_like(state, 7.0)

    rows = torch.arange(400)
    velocity_matching(field, clean, cond=rows, select=lambda cond, chosen: cond[chosen], **common(self_cond_noise=0.1))
    (first_state, first_cond, chosen), (_, fed_back, _) = passes
    given = fed_back.flatten(1).abs().sum(1) > 0
    assert first_cond is None and torch.equal(rows[given], chosen) and len(first_state) == len(chosen)
    assert 150 < len(chosen) < 250
    disturbance = fed_back[given] - 7.0
    assert 0.04 < float(disturbance.std()) < 0.08  # std of a scale uniform in [0, 0.1] is 0.1 / sqrt(3)
    assert not fed_back.requires_grad


@pytest.mark.parametrize("select", [None, lambda cond, rows: cond])
def test_self_conditioning_with_or_without_selecting_rows_is_the_same(select) -> None:
    clean = torch.randn(16, 2, 2, generator=torch.Generator().manual_seed(0))

    def field(state, t, *, cond, self_cond):
        return torch.tanh(state) + (0 if self_cond is None else 0.3 * self_cond)

    loss = velocity_matching(field, clean, select=select, **common())
    plain = velocity_matching(field, clean, select=lambda cond, rows: cond, **common())
    torch.testing.assert_close(loss.total, plain.total)


def test_the_exact_field_has_the_least_loss_and_calibrates_the_density() -> None:
    mixture = mixture_field(torch.tensor([[[1.0]], [[-1.0]]]), torch.tensor([0.2, 0.2]))
    clean = mixture.sample(4096, torch.Generator().manual_seed(0)).float()
    arguments = common(self_cond_probability=0.0, weight_cap=1e4)
    best = float(velocity_matching(mixture, clean, **arguments).total)
    wrongs = (lambda *a, **k: 0.9 * mixture(*a, **k), lambda *a, **k: mixture(*a, **k) + 0.1)
    for wrong in wrongs:
        assert float(velocity_matching(wrong, clean, **common(self_cond_probability=0.0, weight_cap=1e4)).total) > best
    density = arguments["time_density"]
    gammas, losses, _ = density.measured_loss()
    assert density.calibrated and float(losses[gammas > 3].mean()) > 0.9 > 0.1 > float(losses[gammas < -1].mean())


def test_the_learned_velocity_is_the_posterior_mean_law() -> None:
    """Least squares on the conditional velocity recovers (E[clean | state] - state) / (1 - t), for a Gaussian."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.4, 0.2]], dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    noise, source = torch.randn(2, 400_000, 3, dtype=torch.float64, generator=generator)
    clean = mean + source @ factor.T
    for t in (0.2, 0.5, 0.8):
        state = LinearPath().sample(noise, clean, torch.full((len(clean),), t, dtype=torch.float64))
        design = torch.cat([state, torch.ones(len(state), 1, dtype=torch.float64)], 1)
        learned = torch.linalg.lstsq(design, clean - noise).solution
        covariance = factor @ factor.T
        gain = t * covariance @ torch.linalg.inv(t**2 * covariance + (1 - t) ** 2 * torch.eye(3, dtype=torch.float64))
        slope, intercept = (gain - torch.eye(3)) / (1 - t), (mean - t * gain @ mean) / (1 - t)
        torch.testing.assert_close(learned, torch.cat([slope.T, intercept[None]]), rtol=0, atol=0.02)


def test_the_minimiser_of_the_objective_is_the_closed_form_field() -> None:
    """The loss is quadratic in a field that is linear in its features, so one Newton step is the whole training.

    It stops at t = 0.7: beyond, the capped weight lets the sampling error of the fit grow as 1 / (1 - t).
    """
    mean, std, degree = 0.7, 0.4, 8
    clean = mean + std * torch.randn(60_000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def field_of(parameters: torch.Tensor):
        def field(state, t, *, cond=None, self_cond=None):
            powers = (2 * t.reshape(-1, 1, 1, 1) - 1) ** torch.arange(degree + 1)
            return torch.cat([state[..., None] * powers, powers], -1) @ parameters

        return field

    def loss_of(parameters: torch.Tensor) -> torch.Tensor:
        return velocity_matching(field_of(parameters), clean, **common(self_cond_probability=0.0)).total

    origin = torch.zeros(2 * (degree + 1), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_of(origin), origin)
    hessian = torch.autograd.functional.hessian(loss_of, origin)
    assert isinstance(hessian, torch.Tensor)
    trained = field_of(-torch.linalg.solve(hessian, gradient))

    exact = mixture_field(torch.tensor([[[mean]]], dtype=torch.float64), torch.tensor([std]))
    state = torch.linspace(-1, 2, 31, dtype=torch.float64).reshape(-1, 1, 1)
    for time in (0.1, 0.3, 0.5, 0.7):
        t = torch.full((31, 1), time, dtype=torch.float64)
        learned, expected = (LinearPath().convert(f(state, t), "clean", "velocity", state, t) for f in (trained, exact))
        assert float((learned - expected).norm() / expected.norm()) < 0.04


def test_terminal_cross_entropy_teaches_tokens_and_reaches_the_embedding() -> None:
    tokens = torch.randint(0, 5, (64, 3), generator=torch.Generator().manual_seed(0))
    embedding = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    embedding.requires_grad_()

    def uniform(state, t, *, cond, self_cond):
        return torch.zeros(*state.shape[:2], 5) + 0 * state.sum(-1, keepdim=True)

    def bayes(state, t, *, cond, self_cond):
        t = t[..., None]
        return (t / (1 - t).clamp_min(1e-3) ** 2) * (state @ embedding.T)

    known = torch.arange(3) == 2
    arguments = {"mask": (torch.arange(3) < 3).expand(64, 3), "known": known.expand(64, 3)}
    flat = terminal_cross_entropy(uniform, tokens, embedding, **arguments, **common())
    assert float(flat.total.detach()) == pytest.approx(math.log(5))
    informed = terminal_cross_entropy(bayes, tokens, embedding, **arguments, **common())
    assert float(informed.total.detach()) < 0.9 * math.log(5)
    (gradient,) = torch.autograd.grad(informed.total, embedding)
    assert float(gradient.norm()) > 0


def test_expected_embedding_goes_to_the_mode_as_the_temperature_falls() -> None:
    embedding, logits = torch.eye(3), torch.tensor([[[1.0, 2.0, 0.0]]])
    torch.testing.assert_close(expected_embedding(logits, embedding), torch.softmax(logits, -1))
    torch.testing.assert_close(expected_embedding(logits, embedding, 0.01), embedding[1][None, None])


def test_a_batch_without_scored_positions_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to learn"):
        known = torch.ones(2, 3, dtype=torch.bool)
        velocity_matching(lambda state, t, **_: state, torch.zeros(2, 3, 1), known=known, **common())


def test_the_posterior_target_is_the_conditional_mean_of_the_draw() -> None:
    """Regress draws on the state for a fixed Gaussian: the best line is the target, and it is less noisy."""
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    for time in (0.0, 0.3, 0.8, 1.0):
        draws = mean + std * torch.randn(200_000, generator=generator, dtype=torch.float64)
        noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
        state = (1 - time) * noise + time * draws
        shape = (1, len(state), 1)
        t = torch.full(shape[:2], time, dtype=torch.float64)
        target = posterior_target(state.view(shape), t, mean.expand(shape), std.expand(shape)).flatten()
        slope = torch.cov(torch.stack([state, draws]))[0, 1] / state.var()
        line = draws.mean() + slope * (state - state.mean())
        torch.testing.assert_close(target, line, atol=0.02, rtol=0)
    assert torch.allclose(target, draws), "at t = 1 the target is the draw itself"


@pytest.mark.parametrize("self_cond", [0.0, 1.0])
def test_an_objective_draws_from_its_generator_alone(self_cond, no_global_draws) -> None:
    settings = {"start_share": 0.3, "end_share": 0.2, "self_cond_probability": self_cond, "self_cond_noise": 0.1}
    tokens, embedding = torch.tensor([[1, 2], [0, 1], [2, 2]]), torch.eye(3)
    with no_global_draws():
        velocity_matching(lambda state, t, **_: 0.5 * state, torch.ones(5, 2, 2), **common(**settings))
        terminal_cross_entropy(lambda state, t, **_: state, tokens, embedding, **common(**settings))


def test_the_density_hears_the_cross_entropy_of_each_row_unless_it_is_measured_only() -> None:
    heard, arguments = [], common(self_cond_probability=0.0)
    arguments["time_density"].observe = lambda t, loss: heard.append(loss)
    tokens, logits = torch.tensor([[0, 1], [2, 0]]), torch.tensor([3.0, 1.0, 0.0])

    def field(state, t, **_):
        return logits.expand(2, 2, 3)

    terminal_cross_entropy(field, tokens, torch.eye(3), **arguments)
    nats = logits.logsumexp(0) - logits
    assert heard[0].tolist() == pytest.approx([float(nats[0] + nats[1]) / 2, float(nats[2] + nats[0]) / 2])
    terminal_cross_entropy(field, tokens, torch.eye(3), observe=False, **arguments)
    assert len(heard) == 1


def test_a_share_of_nothing_is_nothing_even_for_a_draw_of_zero(monkeypatch) -> None:
    """A uniform draw may be 0 itself."""
    seen = []

    def field(state, t, *, cond, self_cond):
        seen.append((t, self_cond))
        return state

    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(*shape))
    velocity_matching(field, torch.ones(4, 1, 2), **common(self_cond_probability=0.0))
    ((t, fed),) = seen
    assert sorted(t.tolist()) == [0.0, 0.25, 0.5, 0.75] and fed is None


def test_a_terminal_cost_is_added_as_it_is_and_velocity_matching_by_its_weight() -> None:
    clean, asked = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1)), []

    def field(state, t, *, cond, self_cond):
        return 0.5 * state

    def terminal(estimate, t):
        asked.append((estimate.clean, t))
        return estimate.clean.square().mean()

    plain = velocity_matching(field, clean, **common(self_cond_probability=0.0))
    both = velocity_matching(field, clean, terminal=terminal, weight=0.25, **common(self_cond_probability=0.0))
    [(estimate, t)] = asked
    assert t.shape == (5,) and both.parts["terminal"] == estimate.square().mean()
    torch.testing.assert_close(both.total, 0.25 * plain.total + estimate.square().mean())
    assert both.parts["velocity"] == plain.parts["velocity"] and "terminal" not in plain.parts
